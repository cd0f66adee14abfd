"""The engine is imported where nobody has a name."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os, pwd
def unknown(uid):
    raise OSError(uid)  # as getpass does since Python 3.13
pwd.getpwuid = unknown
import containerd_shim_spin_v1.engine
print("LOGNAME" in os.environ)
"""


def test_import_without_a_user() -> None:
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env={}, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")
