"""An image's /etc/nsswitch.conf says nothing about lookups."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.root

LOOK_UP = """
import socket
from containerd_shimkit.linux.names import use_files_and_dns
if {fixed}:
    use_files_and_dns()
print(socket.getaddrinfo("only.in.hosts", 80, type=socket.SOCK_STREAM)[0][4][0])
"""
IMAGE = """
mount -t tmpfs none /etc
echo 'hosts: nothing' > /etc/nsswitch.conf
echo '192.0.2.7 only.in.hosts' > /etc/hosts
exec "$@"
"""


@pytest.mark.parametrize("fixed", [True, False])
def test_names_are_found_in_etc_hosts(fixed: bool) -> None:
    command = ["unshare", "--mount", "sh", "-ec", IMAGE, "sh"]
    done = subprocess.run(
        [*command, sys.executable, "-c", LOOK_UP.format(fixed=fixed)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout == "192.0.2.7\n") is fixed, done.stderr
