"""Memory that stays shared with forks, measured in processes of their own."""

from __future__ import annotations

import subprocess
import sys

# Leaves 1000 gaps between small objects, one to a page, and forks a child that makes as many. In
# its pages the child writes only the objects: the list that holds them is the parent's.
GAPS = """
import os, re, sys
from containerd_shimkit.prefork import seal

COUNT, SIZE, PAGE = 1000, 64 - 33, 4096  # 33 bytes are the header of a bytes object
blocks = [os.urandom(SIZE) for _ in range(COUNT * PAGE // 64)]
del blocks[:: PAGE // 64]
keep = [None] * COUNT
if sys.argv[1] == "sealed":
    seal()
reader, writer = os.pipe()
if os.fork() == 0:
    for index in range(COUNT):
        keep[index] = index.to_bytes(SIZE, "little")
    text = open("/proc/self/smaps_rollup").read()
    os.write(writer, re.search(r"Private_Dirty: +([0-9]+) kB", text)[1].encode())
    os._exit(0)
print(os.read(reader, 100).decode())
os.wait()
"""


def dirty_kilobytes(argument: str) -> int:
    command = [sys.executable, "-c", GAPS, argument]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return int(result.stdout)


def test_forks_put_new_objects_on_pages_of_their_own() -> None:
    as_it_was, sealed = dirty_kilobytes("as it was"), dirty_kilobytes("sealed")
    assert as_it_was > 4000
    assert sealed < as_it_was - 3000


def test_the_collector_is_on_for_what_comes_after() -> None:
    code = "import gc; from containerd_shimkit.prefork import seal; gc.disable(); seal(); "
    subprocess.run([sys.executable, "-c", code + "assert gc.isenabled()"], timeout=60, check=True)
