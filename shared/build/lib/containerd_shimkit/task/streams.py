"""Standard streams of ordinary containers: FIFOs of containerd's, straight or through a terminal.

Without a terminal the process gets the output FIFOs' ends themselves; the shim keeps the other ends
open, so that it gets no SIGPIPE because containerd restarts. Its input is a pipe that the shim
fills from the FIFO, until the client is gone or says CloseIO.

With a terminal the shim copies between the FIFOs and the terminal's master, which runc hands over
on a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import tempfile
import termios
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

from containerd_shimkit.errors import FailedPreconditionError, UnimplementedError
from containerd_shimkit.stdio import StdioNames, open_output
from containerd_shimkit.task.runc import StandardStreams

_CHUNK: Final = 32 << 10
_ATTACH_SECONDS: Final = 10.0  # for the runtime to send the terminal it has made

RunProcess = Callable[[StandardStreams | None, Path | None], Awaitable[int]]
"""Starts a process with these streams, or a terminal on this console socket; returns its pid."""


@contextlib.contextmanager
def held_open(names: StdioNames) -> Iterator[None]:
    """Hold the FIFOs open inside.

    Whoever opens and closes an end alone, as a sandbox does that turns out not to be wanted,
    would end the stream for the client at the other one.
    """
    # Of the input only the reading end: a writer that comes and goes is the end of the input.
    ends = (
        (names.stdin, os.O_RDONLY),
        (names.stdout, os.O_RDWR),
        (names.stderr, os.O_RDWR),
    )
    held: list[int] = []
    try:
        for name, flags in ends:
            if name.startswith("/"):
                with contextlib.suppress(OSError):  # whoever needs it says what is wrong
                    held.append(os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC))
        yield
    finally:
        _close_all(held)


class ProcessStreams:
    """The streams of one process, of whichever form."""

    def __init__(self, names: StdioNames, *, terminal: bool) -> None:
        self._names = names
        self._wants_terminal = terminal
        self._terminal: Terminal | None = None
        self._piped: PipedStreams | None = None

    async def run(self, start: RunProcess) -> int:
        """Open the streams, start the process with them, return its pid."""
        if self._wants_terminal:
            return await self._run_in_terminal(start)
        self._piped = PipedStreams(self._names)
        try:
            return await start(self._piped.streams, None)
        except BaseException:
            self._piped.close()
            raise
        finally:
            self._piped.release()

    async def _run_in_terminal(self, start: RunProcess) -> int:
        self._terminal = Terminal(self._names)
        attached = asyncio.create_task(self._terminal.attach())
        try:
            pid = await start(None, self._terminal.socket_path)
            await attached
            return pid
        except BaseException:
            attached.cancel()
            await self._terminal.close()
            raise

    def close_stdin(self) -> None:
        """Let the process see the end of its input."""
        if self._piped is not None:
            self._piped.close_stdin()

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters. Raises FailedPreconditionError without one."""
        if self._terminal is None:
            raise FailedPreconditionError("the process has no terminal")
        self._terminal.resize(width, height)

    async def close(self) -> None:
        """Let containerd see the end of the output."""
        if self._piped is not None:
            self._piped.close()
        if self._terminal is not None:
            await self._terminal.close()


class PipedStreams:
    """FIFOs given to a process."""

    def __init__(self, names: StdioNames) -> None:
        """Open both ends of each. Raises OSError."""
        self._ours: list[int] = []
        self._theirs: list[int] = []
        self._input: InputCopy | None = None
        try:
            self.streams = StandardStreams(
                self._open_stdin(names.stdin),
                self._open_output(names.stdout),
                self._open_output(names.stderr),
            )
        except BaseException:
            self.release()
            self.close()
            raise

    def _open_stdin(self, name: str) -> int:
        if not name:
            return self._their(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        fifo = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        reader, writer = os.pipe()
        self._input = InputCopy(fifo, writer)
        return self._their(reader)

    def _open_output(self, name: str) -> int:
        if name.startswith("binary:"):
            raise UnimplementedError("an ordinary Linux container cannot log to a program")
        if not name.startswith("/"):  # nothing, or file:///path
            return self._their(open_output(name))
        self._ours.append(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        return self._their(_blocking(name, os.O_WRONLY))

    def _their(self, descriptor: int) -> int:
        self._theirs.append(descriptor)
        return descriptor

    def release(self) -> None:
        """Close what the process has by now."""
        _close_all(self._theirs)

    def close_stdin(self) -> None:
        """Let the process see the end of its input once all that was written is read."""
        if self._input is not None:
            self._input.finish()

    def close(self) -> None:
        """Let go of everything; containerd sees the end of the output."""
        if self._input is not None:
            self._input.cancel()
        _close_all(self._ours)


class InputCopy:
    """Copies a FIFO to a pipe until its writers are gone, or until told to finish.

    A process that had the FIFO itself would see the end of its input before anybody has written.
    """

    def __init__(self, fifo: int, pipe: int) -> None:
        """Owns both descriptors from here on."""
        os.set_blocking(pipe, False)
        self._finishing = False
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._copy(fifo, pipe))
        # Not in the task: one that is cancelled before its first step never runs.
        self._task.add_done_callback(lambda _: _close_all([fifo, pipe]))

    def finish(self) -> None:
        """Copy what is there, then end."""
        self._finishing = True
        self._wake.set()

    def cancel(self) -> None:
        """End at once."""
        self._task.cancel()

    async def _copy(self, fifo: int, pipe: int) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(fifo, self._wake.set)
        try:
            while True:
                # Before reading: a FIFO that nobody has opened for writing yet reads as ended.
                await self._wake.wait()
                self._wake.clear()
                try:
                    data = os.read(fifo, _CHUNK)
                except BlockingIOError:
                    if self._finishing:
                        return
                    continue
                if not data:
                    return
                while data:
                    data = data[await _write(pipe, data) :]
                if self._finishing:
                    self._wake.set()
        except OSError:
            return  # EPIPE: the process reads no more
        finally:
            loop.remove_reader(fifo)


def _blocking(name: str, flags: int) -> int:
    descriptor = os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(descriptor, True)
    return descriptor


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


class Terminal:
    """A pseudo-terminal of a process, copied from and to FIFOs."""

    def __init__(self, names: StdioNames) -> None:
        self._names = names
        self._directory = Path(tempfile.mkdtemp(prefix="console-"))
        self.socket_path = self._directory / "socket"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.socket_path))
        self._listener.listen(1)
        self._listener.setblocking(False)
        self._master = -1
        self._input = -1
        self._copies: list[asyncio.Task[None]] = []

    async def attach(self) -> None:
        """Take the master that runc sends, and begin to copy."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_ATTACH_SECONDS):
            connection, _ = await loop.sock_accept(self._listener)
        with connection:
            connection.setblocking(True)  # the message was sent before runc ended
            _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        self._forget_socket()
        if not descriptors:
            raise FailedPreconditionError("the runtime sent no terminal")
        self._master = descriptors[0]
        os.set_blocking(self._master, False)
        output = os.open(self._names.stdout, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._copies.append(asyncio.create_task(_copy(self._master, output, close=output)))
        if self._names.stdin:
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
            self._input = os.open(self._names.stdin, flags)
            self._copies.append(asyncio.create_task(_copy(self._input, self._master)))

    def resize(self, width: int, height: int) -> None:
        """Set the size in characters."""
        if self._master < 0:
            raise FailedPreconditionError("the process has no terminal yet")
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    async def close(self) -> None:
        """Deliver what the process wrote last, and let go of everything."""
        self._forget_socket()
        if self._copies:
            # The slave is closed with the process: the copy of the output ends by itself.
            await asyncio.wait(self._copies[:1], timeout=1.0)
            for copy in self._copies:
                copy.cancel()
            await asyncio.gather(*self._copies, return_exceptions=True)
        for descriptor in (self._master, self._input):
            if descriptor >= 0:
                os.close(descriptor)
        self._master = self._input = -1

    def _forget_socket(self) -> None:
        self._listener.close()
        self.socket_path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._directory.rmdir()


async def _copy(source: int, target: int, close: int = -1) -> None:
    """Copy until the source ends; both descriptors are non-blocking."""
    try:
        while data := await _read(source):
            while data:
                data = data[await _write(target, data) :]
    except OSError:
        return  # EIO: the other side of a terminal is closed
    finally:
        if close >= 0:
            os.close(close)


async def _read(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, _CHUNK)
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            await _ready(descriptor, loop.add_reader, loop.remove_reader)


async def _write(descriptor: int, data: bytes) -> int:
    while True:
        try:
            return os.write(descriptor, data)
        except BlockingIOError:
            loop = asyncio.get_running_loop()
            await _ready(descriptor, loop.add_writer, loop.remove_writer)


async def _ready(descriptor: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    event = asyncio.Event()
    add(descriptor, event.set)
    try:
        await event.wait()
    finally:
        remove(descriptor)
