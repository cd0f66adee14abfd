"""The warm template: everything imported once, then one fork for each command containerd executes.

Rules: one thread, no event loop, no wasmtime engine, no descriptor but the socket, its wake-up
pipe, and what holds the unpacked files. It does nothing but fork, so there is nothing in it that a
pod could reach or that could fail differently for one pod than for another. It ends when it has
neither children nor work for ``IDLE_SECONDS``, or when its socket is gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final

from setproctitle import setproctitle

from containerd_shimkit.background import release_standard_streams
from containerd_shimkit.cli import run, warm_up
from containerd_shimkit.handover import TAKEN, decode, zygote_socket
from containerd_shimkit.prefork import seal
from containerd_shimkit.rpc.server import peer_uid
from containerd_shimkit.runtime import ShimKind

IDLE_SECONDS: Final = 600.0
_WAKE_SECONDS: Final = 30.0  # how often an idle zygote looks whether its socket is still there
_MESSAGE_SECONDS: Final = 5.0  # whoever was greeted has this long to say what it wants
_MAX_MESSAGE: Final = 1 << 20
_LISTENER: Final = 3


def serve_zygote(kind: ShimKind, build_id: str) -> int:
    """Serve on descriptor 3 until unused. Returns the exit code; forks return from elsewhere."""
    path = Path(zygote_socket(kind, build_id))
    listener = socket.socket(fileno=_LISTENER)
    listener.set_inheritable(False)
    listener.setblocking(False)
    os.chdir("/")
    os.umask(0o022)
    # Whatever a child may need: after pivot_root there is nothing to import from. Our own imports
    # have brought the rest.
    kind.import_engine()
    warm_up(kind)
    seal()
    setproctitle(f"{kind.binary} zygote {path}")
    Zygote(kind, build_id, listener, path).serve()
    return 0


class Zygote:
    """The loop: accept, check, fork."""

    def __init__(self, kind: ShimKind, build_id: str, listener: socket.socket, path: Path) -> None:
        self._kind = kind
        self._build_id = build_id
        self._listener = listener
        self._path = path
        self._inode = path.stat().st_ino
        self._children: set[int] = set()
        self._greeted: dict[int, tuple[socket.socket, float]] = {}
        """Connections that have not said yet what they want, by descriptor, and until when."""
        self._poll = select.poll()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        """Serve until idle or replaced."""
        signal.set_wakeup_fd(self._wake_writer)
        signal.signal(signal.SIGCHLD, _ignore)
        self._poll.register(self._listener, select.POLLIN)
        self._poll.register(self._wake_reader, select.POLLIN)
        idle = 0.0
        while idle < IDLE_SECONDS and self._is_current():
            seconds = _MESSAGE_SECONDS if self._greeted else _WAKE_SECONDS
            ready = [fd for fd, _ in self._poll.poll(seconds * 1000)]
            self._reap()
            if self._listener.fileno() in ready:
                self._greet()
            for fd in ready:
                if fd in self._greeted:
                    self._hear(fd)
            self._drop_silent()
            busy = self._children or self._greeted or self._listener.fileno() in ready
            idle = 0.0 if busy else idle + _WAKE_SECONDS
        if self._is_current():
            self._path.unlink(missing_ok=True)

    def _is_current(self) -> bool:
        """Whether the socket's path still leads here; a hung zygote is replaced by removing it."""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_reader, 512):
                pass
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._children.discard(pid)

    def _greet(self) -> None:
        """Take up a connection, and wait for nobody: on a busy node the other end may take long."""
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        try:
            connection.send(b"!")  # alive; whoever has given up meanwhile is gone by now
        except OSError:
            connection.close()
            return
        self._greeted[connection.fileno()] = (connection, time.monotonic() + _MESSAGE_SECONDS)
        self._poll.register(connection, select.POLLIN)

    def _hear(self, fd: int) -> None:
        """Do what a connection asks for."""
        self._poll.unregister(fd)
        connection, _ = self._greeted.pop(fd)
        with connection:
            try:
                message, descriptors, _, _ = socket.recv_fds(connection, _MAX_MESSAGE, 3)
            except OSError:
                return
            try:
                if peer_uid(connection) in (0, os.geteuid()) and len(descriptors) == 3 and message:
                    self._fork(connection, message, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for fd, (connection, deadline) in list(self._greeted.items()):
            if now >= deadline:
                self._poll.unregister(fd)
                connection.close()
                del self._greeted[fd]

    def _fork(self, connection: socket.socket, message: bytes, descriptors: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError:
            return  # no answer: the caller does the work itself, or says why it cannot
        if pid:
            self._children.add(pid)
            return
        try:
            connection.send(TAKEN)
        except OSError:
            os._exit(0)  # the caller has given up, and does the work itself
        code = 70  # EX_SOFTWARE
        answer = _Answer(connection)
        try:
            arguments = self._become(message, descriptors)
            code = run(self._kind, self._build_id, arguments, detach=answer.detach)
        except BaseException as exc:
            with contextlib.suppress(BaseException):
                sys.stderr.write(f"{self._kind.binary}: {exc!r}\n")
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            answer.send(code)
            os._exit(code)

    def _become(self, message: bytes, descriptors: list[int]) -> list[str]:
        """Make this fork look like the process containerd executed; return its arguments."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._listener.close()
        for connection, _ in self._greeted.values():
            connection.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        arguments, environment, directory = decode(message)
        setproctitle(" ".join([self._kind.binary, *arguments]))
        os.environ.clear()
        os.environ.update(environment)
        os.setsid()
        os.chdir(directory)
        return arguments


class _Answer:
    """Sends the exit code to the waiting command, once."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection: socket.socket | None = connection

    def send(self, code: int) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(bytes([code & 0xFF]))
            self._connection.close()
            self._connection = None

    def detach(self) -> None:
        """Let the command end with success while this process goes on."""
        release_standard_streams()
        self.send(0)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """A handler that does nothing: the signal is seen through the wake-up descriptor."""
