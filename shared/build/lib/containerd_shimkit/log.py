"""Logging to containerd: lines in logrus' text format on the ``log`` FIFO of the bundle.

Rules:

- Logging never blocks and never fails: a line that does not fit into the FIFO is dropped, and the
  next one that does is preceded by the number of those dropped.
- A line is written whole or not at all and never mixes with that of another process, so it is at
  most PIPE_BUF bytes long (pipe(7)).
- The FIFO is opened for reading too, as containerd does: opening does not wait for a reader,
  writing gives no EPIPE, and what is written while containerd restarts is there when it is back.

Fields are given as ``log.info("created", extra={"fields": {"pid": 7}})``.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

MAX_LINE_BYTES = 4096  # PIPE_BUF on Linux
MAX_MESSAGE_BYTES = 4000
MAX_FIELD_BYTES = 512
MAX_FIELDS_BYTES = 2048
MAX_TRACEBACK_CHARS = 1500

# Source: sirupsen/logrus, (Level).MarshalText and isSafeByte of the text formatter.
_LEVELS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}
_UNQUOTED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._/@^+")
_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}


class LogrusFormatter(logging.Formatter):
    """Formats records as containerd formats its own."""

    def __init__(self, fields: Mapping[str, object] | None = None) -> None:
        """fields: added to every line."""
        super().__init__()
        self._fields = dict(fields or {})

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end, at most ``MAX_LINE_BYTES - 1`` bytes in UTF-8."""
        head = f'time="{format_time(record.created)}" level={_level_name(record.levelno)} msg='
        tail = "".join(_within(self._pairs(record), MAX_FIELDS_BYTES))
        room = MAX_LINE_BYTES - 1 - len(head) - len(tail.encode())
        return head + _quote_within(record.getMessage(), min(room, MAX_MESSAGE_BYTES)) + tail

    def _pairs(self, record: logging.LogRecord) -> list[str]:
        fields = self._fields | getattr(record, "fields", {})
        pairs = [
            f" {name}={_quote_within(str(fields[name]), MAX_FIELD_BYTES)}"
            for name in sorted(fields)
        ]
        if record.exc_info and record.exc_info[0] is not None:
            # The end of a traceback says what happened.
            traceback = self.formatException(record.exc_info)[-MAX_TRACEBACK_CHARS:]
            pairs.insert(0, f" error={_quote_within(traceback, MAX_FIELDS_BYTES)}")
        return pairs


class FifoHandler(logging.Handler):
    """Writes to a FIFO that somebody may read."""

    def __init__(self, path: str | Path) -> None:
        """
        path: opened at the first line, and tried again at each further one if that fails.
        """
        super().__init__()
        self._path = path
        self._fd: int | None = None
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as exc:
            # A bug in the caller's arguments; its place is worth more than silence.
            place = quote(f"{record.pathname}:{record.lineno}")
            reason = quote(str(exc)[:200])
            line = f'level=error msg="cannot format a log line" at={place} error={reason}'
        if self._dropped and self._write(self.format(self._drop_record())):
            self._dropped = 0
        if self._dropped or not self._write(line):
            self._dropped += 1

    def close(self) -> None:
        self._close_fd()
        super().close()

    def _write(self, line: str) -> bool:
        data = line.encode(errors="backslashreplace") + b"\n"
        try:
            if self._fd is None:
                flags = os.O_RDWR | os.O_NONBLOCK | os.O_APPEND | os.O_CLOEXEC
                self._fd = os.open(self._path, flags)
            return os.write(self._fd, data) == len(data)
        except BlockingIOError:
            return False
        except OSError:
            self._close_fd()
            return False

    def _close_fd(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _drop_record(self) -> logging.LogRecord:
        message = "%d log lines dropped"
        arguments = (self._dropped,)
        return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, arguments, None)


def configure(level: int | str, fifo_path: str | Path | None, **fields: object) -> logging.Handler:
    """Send everything logged in this process to ``fifo_path``, or to stderr if that is None.

    level: the least that is logged, a constant of ``logging`` or its name.
    fields: added to every line, for example ``runtime="io.containerd.spin.v1"``.
    Replaces what an earlier call has set up, and returns the new handler.
    """
    handler = logging.StreamHandler(sys.stderr) if fifo_path is None else FifoHandler(fifo_path)
    handler.setFormatter(LogrusFormatter(fields))
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if isinstance(h.formatter, LogrusFormatter)]:
        root.removeHandler(earlier)
        earlier.close()
    root.addHandler(handler)
    root.setLevel(level.upper() if isinstance(level, str) else level)
    # A handler's own failure must not end up on the stderr that containerd reads.
    logging.raiseExceptions = False
    return handler


def format_time(seconds: float) -> str:
    """Return ``seconds`` since 1970 as RFC 3339 in UTC with nine digits, as containerd's log.

    Not by ``strftime``, which may ask for a locale; no file is read.
    """
    whole, micros = divmod(int(seconds * 1_000_000), 1_000_000)
    year, month, day, hour, minute, second = time.gmtime(whole)[:6]
    date = f"{year:04}-{month:02}-{day:02}"
    return f"{date}T{hour:02}:{minute:02}:{second:02}.{micros:06}000Z"


def quote(value: str) -> str:
    """Return ``value`` as logrus writes it: bare if that is safe, else as a Go string literal.

    Source: strconv.Quote of Go. An empty value becomes ``""``.
    """
    if value and _UNQUOTED.issuperset(value):
        return value
    return '"' + "".join(_escape(char) for char in value) + '"'


def _escape(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8, as surrogateescape keeps it
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _quote_within(value: str, limit: int) -> str:
    """Return ``quote(value)``, or that of a beginning of it, in at most ``limit`` bytes."""
    quoted = quote(value[:limit])
    while len(quoted.encode()) > limit:
        value = value[: min(len(value), limit) * 3 // 4]
        quoted = quote(value + "…")
    return quoted


def _within(pairs: list[str], limit: int) -> list[str]:
    """Return as many of ``pairs``, from the first, as fit into ``limit`` bytes."""
    kept = []
    for pair in pairs:
        limit -= len(pair.encode())
        if limit < 0:
            break
        kept.append(pair)
    return kept


def _level_name(level: int) -> str:
    return next(
        (_LEVELS[known] for known in sorted(_LEVELS, reverse=True) if level >= known), "trace"
    )
