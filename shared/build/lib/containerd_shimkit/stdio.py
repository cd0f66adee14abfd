"""Standard streams of a container, as containerd names them in Create.

A name is empty (nothing), a FIFO's path, ``file:///path`` or ``binary:///program?key=value``.
FIFOs are opened for reading and writing: that never blocks, and a reader that comes and goes does
no harm.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from containerd_shimkit.errors import InvalidArgumentError, NotFoundError
from containerd_shimkit.spawn import spawn

# For a logging program to say that it is ready; as containerd's shims.
_BINARY_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class StdioNames:
    """The three names of a CreateTaskRequest."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""


class Stdio:
    """Open descriptors for 0, 1 and 2 of a container; closed once they have become those."""

    def __init__(self, names: StdioNames, *, namespace: str, task_id: str) -> None:
        """Open everything. Raises InvalidArgumentError, NotFoundError, OSError."""
        self._descriptors: list[int] = []
        try:
            self.stdin = self._keep(_open_stdin(names.stdin))
            if urlsplit(names.stdout).scheme == "binary":
                self.stdout, self.stderr = _start_logger(names.stdout, namespace, task_id)
                self._keep(self.stdout)
                self._keep(self.stderr)
            else:
                self.stdout = self._keep(open_output(names.stdout))
                self.stderr = self._keep(open_output(names.stderr))
        except BaseException:
            self.close()
            raise

    def _keep(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()


def _open_stdin(name: str) -> int:
    if not name:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    # Not O_RDWR: a guest that reads its input must see its end.
    return _open(name, os.O_RDONLY | os.O_NONBLOCK)


def open_output(name: str) -> int:
    """Open nothing, a FIFO or a file. Raises InvalidArgumentError, NotFoundError, OSError."""
    if not name:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    url = urlsplit(name)
    if url.scheme == "file":
        path = Path(unquote(url.path))
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(path, flags, 0o640)
    if url.scheme:
        raise InvalidArgumentError(
            f"standard stream {name!r}: scheme {url.scheme!r} is none of fifo, file, binary"
        )
    return _open(name, os.O_RDWR | os.O_NONBLOCK)


def _open(path: str, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise NotFoundError(f"standard stream {path!r} does not exist") from exc
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode) and flags & os.O_NONBLOCK:
        os.set_blocking(descriptor, True)
    return descriptor


def _start_logger(uri: str, namespace: str, task_id: str) -> tuple[int, int]:
    """Start a ``binary://`` logging program; return what its stdout and stderr are written to.

    It gets stdout, stderr and a pipe to close when it is ready as descriptors 3, 4 and 5, the
    container's names in its environment, and the URI's query as arguments. Source: containerd
    runtime v2 README, "Logging".
    """
    url = urlsplit(uri)
    program = unquote(url.path)
    arguments = [
        part for pair in parse_qsl(url.query, keep_blank_values=True) for part in pair if part
    ]
    out_reader, out_writer = os.pipe()
    err_reader, err_writer = os.pipe()
    ready_reader, ready_writer = os.pipe()
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "CONTAINER_ID": task_id,
        "CONTAINER_NAMESPACE": namespace,
    }
    try:
        descriptors = (out_reader, err_reader, ready_writer)
        pid = spawn([program, *arguments], environment, descriptors, first=3)
    except OSError as exc:
        os.close(out_writer)
        os.close(err_writer)
        os.close(ready_reader)
        raise NotFoundError(f"logging program {program!r} cannot be run: {exc.strerror}") from exc
    finally:
        for descriptor in (out_reader, err_reader, ready_writer):
            os.close(descriptor)
    readable, _, _ = select.select([ready_reader], [], [], _BINARY_SECONDS)
    os.close(ready_reader)
    if not readable:
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.close(out_writer)
            os.close(err_writer)
        raise InvalidArgumentError(
            f"logging program {program!r} was not ready after {_BINARY_SECONDS:.0f} s"
        )
    return out_writer, err_writer
