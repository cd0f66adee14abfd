"""What a shim does first that runs from its unpacked files; the rest is in ``test_unpack``."""

from __future__ import annotations

import os
from pathlib import Path

from containerd_shimkit import bundled, forked


def test_descriptor_of_the_program_is_found_behind_links(tmp_path: Path) -> None:
    """A parent of the directory to unpack to may be a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    program = tmp_path / "real" / "python"
    program.touch()
    descriptor = os.open(program, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    child = os.fork()
    if child == 0:
        try:
            bundled._keep_for_callbacks(str(tmp_path / "link" / "python"))
            assert not os.get_inheritable(descriptor)
            forked.close_all_but()
            os.fstat(descriptor)
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(descriptor)
    assert os.waitpid(child, 0)[1] == 0
