"""The container's standard output and error, written without ever blocking the event loop.

A reader that does not read must not stop the app, so what does not fit the pipe waits in a
bounded buffer; beyond the bound output is dropped, and the loss is stated in the stream itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Final

MAX_BUFFERED_BYTES: Final = 1 << 20


class OutputWriter:
    """Writes to one descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._buffer = bytearray()
        self._dropped = 0
        os.set_blocking(descriptor, False)

    def write(self, data: bytes) -> None:
        """Write now what fits, the rest when there is room again. Never raises, never waits."""
        if self._buffer:
            self._enqueue(data)
            return
        try:
            written = os.write(self.descriptor, data)
        except BlockingIOError:
            written = 0
        except OSError:
            return  # the reader is gone for good; there is nobody to tell
        if written < len(data):
            self._enqueue(data[written:])

    def _enqueue(self, data: bytes) -> None:
        # After a loss everything waits for its notice, or it would seem that the loss came later.
        room = 0 if self._dropped else MAX_BUFFERED_BYTES - len(self._buffer)
        self._dropped += max(0, len(data) - room)
        if not self._buffer and not self._watch():
            return
        self._buffer += data[:room]

    def _watch(self) -> bool:
        """Ask the loop to say when there is room; False outside of a loop, where nobody would."""
        try:
            asyncio.get_running_loop().add_writer(self.descriptor, self._flush)
        except (RuntimeError, OSError):
            return False
        return True

    def _flush(self) -> None:
        try:
            written = os.write(self.descriptor, self._buffer)
        except BlockingIOError:
            return
        except OSError:
            self._buffer.clear()
            written = 0
        del self._buffer[:written]
        if not self._buffer and self._dropped:
            self._buffer += b"[%d bytes of output dropped: nobody read it]\n" % self._dropped
            self._dropped = 0
        if not self._buffer:
            asyncio.get_running_loop().remove_writer(self.descriptor)


class OutputHandler(logging.Handler):
    """Logs of the engine itself, to the container's standard error."""

    def __init__(self, writer: OutputWriter) -> None:
        super().__init__()
        self._writer = writer
        formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime  # the image may bring a time zone file of its own
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.write(self.format(record).encode(errors="replace") + b"\n")
