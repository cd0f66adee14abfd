"""Files of what single components print."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from containerd_shim_spin_v1.component_logs import ComponentLogs, LoggedOutput
from containerd_shimkit.errors import ManifestError
from containerd_shimkit.output import OutputWriter


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[OutputWriter]:
    """The container's output; see ``printed``."""
    descriptor = os.open(tmp_path / "stream", os.O_CREAT | os.O_RDWR)
    yield OutputWriter(descriptor)
    os.close(descriptor)


def printed(tmp_path: Path) -> str:
    return (tmp_path / "stream").read_text()


@pytest.mark.parametrize("log_dir", [None, ""])
def test_without_a_directory_there_are_none(
    tmp_path: Path, stream: OutputWriter, log_dir: str | None
) -> None:
    assert ComponentLogs(tmp_path, log_dir).output("c", "stdout", stream) is stream
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stream"]


@pytest.mark.parametrize("log_dir", ["/var/log/app", "var/log/app"])
def test_output_goes_to_both(tmp_path: Path, stream: OutputWriter, log_dir: str) -> None:
    for _ in range(2):  # what is there is kept
        logs = ComponentLogs(tmp_path, log_dir)
        logs.output("one", "stdout", stream).write(b"out\n")
        logs.output("one", "stderr", stream).write(b"err\n")
        logs.output("two", "stdout", stream).write(b"two\n")
    directory = tmp_path / "var/log/app"
    assert {path.name: path.read_text() for path in directory.iterdir()} == {
        "one_stdout.txt": "out\nout\n",
        "one_stderr.txt": "err\nerr\n",
        "two_stdout.txt": "two\ntwo\n",
    }
    assert printed(tmp_path) == "out\nerr\ntwo\n" * 2


@pytest.mark.parametrize(
    ("component_id", "name"),
    [
        ("../x", "..x_stdout.txt"),
        ("a b:\n", "a b_stdout.txt"),
        ("é" * 300, "é" * 60 + "_stdout.txt"),
    ],
)
def test_names_of_files(tmp_path: Path, stream: OutputWriter, component_id: str, name: str) -> None:
    ComponentLogs(tmp_path, "logs").output(component_id, "stdout", stream)
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [name]


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ManifestError, match=r"^log_dir /file/logs: Not a directory$"):
        ComponentLogs(tmp_path, "/file/logs")


def test_file_that_cannot_be_written(tmp_path: Path, stream: OutputWriter) -> None:
    logs = ComponentLogs(tmp_path, "/logs")
    os.mkfifo(tmp_path / "logs" / "c_stdout.txt")  # which nobody reads
    with pytest.raises(ManifestError, match=r"^log_dir: /logs/c_stdout\.txt: No such device"):
        logs.output("c", "stdout", stream)


def test_full_disk_is_mentioned_once(
    tmp_path: Path, stream: OutputWriter, caplog: pytest.LogCaptureFixture
) -> None:
    with open("/dev/full", "wb") as full:
        output = LoggedOutput(stream, full.fileno(), "/logs/c_stdout.txt")
        output.write(b"a")
        output.write(b"b")
    assert printed(tmp_path) == "ab"
    assert caplog.messages == ["/logs/c_stdout.txt: cannot be written: No space left on device"]
