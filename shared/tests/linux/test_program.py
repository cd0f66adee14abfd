"""Which commands are programs of their own rootfs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from containerd_shimkit.linux.program import is_program

ELF = b"\x7fELF\x02\x01\x01"
SCRIPT = b"#!/bin/sh\n"
WASM = b"\x00asm\x01\x00\x00\x00"


class Image:
    """A root with files; ``runs`` asks about a command in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self._fd = os.open(root, os.O_PATH | os.O_DIRECTORY)

    def add(self, name: str, data: bytes = ELF, mode: int = 0o755) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
        return path

    def link(self, name: str, target: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def runs(self, command: str, *, env: Mapping[str, str] | None = None, cwd: str = "/") -> bool:
        return is_program(self._fd, command, env or {}, cwd)

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    found = Image(tmp_path / "root")
    yield found
    found.close()


# What a program is


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(ELF, True, id="elf"),
        pytest.param(SCRIPT, True, id="script"),
        pytest.param(b"#!", True, id="script-without-a-name"),
        pytest.param(WASM, False, id="wasm"),
        pytest.param(b"echo hello\n", False, id="text"),
        pytest.param(b"\x7fEL", False, id="short"),
        pytest.param(b" #!/bin/sh\n", False, id="not-at-the-start"),
        pytest.param(b"", False, id="empty"),
    ],
)
def test_contents(image: Image, data: bytes, expected: bool) -> None:
    image.add("app", data)
    assert image.runs("/app") is expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o755, True), (0o100, True), (0o010, True), (0o001, True), (0o644, False), (0o000, False)],
    ids=oct,
)
def test_mode(image: Image, mode: int, expected: bool) -> None:
    if not os.access(image.add("app", mode=mode), os.R_OK):
        pytest.skip("needs root: the file cannot be read")
    assert image.runs("/app") is expected


@pytest.mark.parametrize("command", ["", "/", ".", "..", "/bin", "/bin/", "bin", "/no", "no"])
def test_what_is_no_file_is_no_program(image: Image, command: str) -> None:
    image.add("bin/app")
    assert not image.runs(command)


def test_file_with_a_slash_at_its_end_is_no_program(image: Image) -> None:
    image.add("app")
    assert not image.runs("/app/")


def test_fifo_is_no_program_and_does_not_block(image: Image) -> None:
    os.mkfifo(image.root / "app", 0o755)
    assert not image.runs("/app")


def test_name_that_is_too_long_is_no_program(image: Image) -> None:
    assert not image.runs("/" + "x" * 5000)


# Links


@pytest.mark.parametrize(
    "target", ["busybox", "./busybox", "../bin/busybox", "/bin/busybox", "../../../bin/busybox"]
)
def test_link_inside_the_root(image: Image, target: str) -> None:
    """Above the root there is the root, as for a process in there."""
    image.add("bin/busybox")
    image.link("bin/sh", target)
    assert image.runs("/bin/sh")


def test_link_to_a_directory_on_the_way(image: Image) -> None:
    image.add("usr/bin/app")
    image.link("bin", "usr/bin")
    assert image.runs("/bin/app")


@pytest.mark.parametrize("target", ["{outside}", "../outside", "/proc/self/exe"])
def test_link_out_of_the_root_leads_nowhere(image: Image, target: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(ELF)
    outside.chmod(0o755)
    image.link("app", target.format(outside=outside))
    assert not image.runs("/app")


def test_command_out_of_the_root_leads_nowhere(image: Image, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(ELF)
    outside.chmod(0o755)
    assert not image.runs("/../outside")
    assert not image.runs("../outside")


@pytest.mark.parametrize("target", ["app", "/missing"], ids=["loop", "dangling"])
def test_link_without_an_end(image: Image, target: str) -> None:
    image.link("app", target)
    assert not image.runs("/app")


# Where a command is looked for


def test_name_is_looked_up_along_path(image: Image) -> None:
    image.add("opt/app")
    assert image.runs("app", env={"PATH": "/bin:/opt"})
    assert not image.runs("app", env={"PATH": "/bin:/usr/bin"})


def test_path_entries_that_hold_no_program_are_passed_over(image: Image) -> None:
    image.add("a/app", mode=0o644)
    (image.root / "b/app").mkdir(parents=True)
    image.add("c/app")
    assert image.runs("app", env={"PATH": "/a:/b:/none:/c"})


@pytest.mark.parametrize("env", [{}, {"PATH": ""}], ids=["none", "empty"])
def test_without_path_the_usual_directories(image: Image, env: dict[str, str]) -> None:
    image.add("usr/local/bin/app")
    assert image.runs("app", env=env)


@pytest.mark.parametrize("path", ["", ".", "sub/..", ":/none"])
def test_relative_path_entry_counts_from_the_working_directory(image: Image, path: str) -> None:
    image.add("srv/app")
    (image.root / "srv/sub").mkdir()
    env = {"PATH": f"/none:{path}"}
    assert image.runs("app", env=env, cwd="/srv")
    assert not image.runs("app", env=env, cwd="/")


def test_name_is_not_looked_up_in_the_working_directory(image: Image) -> None:
    image.add("srv/app")
    assert not image.runs("app", env={"PATH": "/bin"}, cwd="/srv")


@pytest.mark.parametrize("command", ["./app", "../srv/app", "deep/../app"])
def test_relative_command_counts_from_the_working_directory(image: Image, command: str) -> None:
    image.add("srv/app")
    (image.root / "srv/deep").mkdir()
    assert image.runs(command, env={"PATH": "/bin"}, cwd="/srv")


def test_absolute_command_does_not_depend_on_the_working_directory(image: Image) -> None:
    image.add("app")
    assert image.runs("/app", cwd="/missing")
