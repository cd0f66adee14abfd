"""systemd, the service manager of the node, over D-Bus: transient units and their jobs.

Blocking, for processes that may wait; one deadline for all that is done over a connection.
Source: org.freedesktop.systemd1(5), sd_booted(3).
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from jeepney import DBusAddress, HeaderFields, Message, MessageType, Parser, new_method_call

from containerd_shimkit.errors import SandboxError
from containerd_shimkit.linux.syscalls import reason

Property = tuple[str, tuple[str, Any]]
"""Name, then D-Bus signature and value."""

# The first is systemd's own, without a bus between: only root may connect, and it is there before
# the bus is.
SOCKETS: Final = ("/run/systemd/private", "/run/dbus/system_bus_socket")
_BOOTED: Final = "/run/systemd/system"
_NAME: Final = "org.freedesktop.systemd1"
_PATH: Final = "/org/freedesktop/systemd1"
_MANAGER: Final = DBusAddress(_PATH, bus_name=_NAME, interface=f"{_NAME}.Manager")
_PROPERTIES: Final = _MANAGER.with_interface("org.freedesktop.DBus.Properties")
_BUS: Final = DBusAddress(
    "/org/freedesktop/DBus", bus_name="org.freedesktop.DBus", interface="org.freedesktop.DBus"
)
_JOB_REMOVED: Final = (
    f"type='signal',sender='{_NAME}',interface='{_NAME}.Manager',member='JobRemoved'"
)
_UNIT_EXISTS: Final = f"{_NAME}.UnitExists"
_NO_SUCH_UNIT: Final = f"{_NAME}.NoSuchUnit"
_POLL_SECONDS: Final = 0.002
_MAX_LINE_BYTES: Final = 4096


def systemd_runs() -> bool:
    """Whether systemd is the node's service manager. Source: sd_booted(3)."""
    return Path(_BOOTED).is_dir()


class SystemdError(SandboxError):
    """systemd refused, or did not answer; the message is its own."""

    def __init__(self, step: str, cause: str, name: str = "") -> None:
        super().__init__(step, cause)
        self.name = name
        """Of the D-Bus error, empty if it is none."""


class Systemd:
    """A connection to the manager, for a few calls."""

    def __init__(self, seconds: float, sockets: Sequence[str] = SOCKETS) -> None:
        """seconds: for everything, from now on. Raises SystemdError."""
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._parser = Parser()
        self._serials = itertools.count(1)
        self._sender: str | None = None
        self._results: dict[str, str] = {}
        """Of jobs that have ended, by path."""
        self._socket = self._connect(sockets)
        try:
            self.version = self._first_call()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Systemd:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def start_transient_unit(self, unit: str, properties: Sequence[Property]) -> None:
        """Start a unit that exists until it ends; return when it is active.

        One of the same name that was left behind in failed state is removed. Raises SystemdError.
        """
        what = f'start unit "{unit}"'
        arguments: tuple[Any, ...] = (unit, "replace", list(properties), [])
        try:
            [job] = self._call(what, "StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)
        except SystemdError as exc:
            if exc.name != _UNIT_EXISTS:
                raise
            self.reset_failed(unit)
            [job] = self._call(what, "StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)
        self._await_job(what, job)

    def set_properties(self, unit: str, properties: Sequence[Property]) -> None:
        """Change properties until the unit ends; return when they are in force."""
        what = f'set properties of unit "{unit}"'
        self._call(what, "SetUnitProperties", "sba(sv)", (unit, True, list(properties)))
        # It answers first and writes to the cgroup next, but before it reads another call.
        self._get_version(what)

    def stop_unit(self, unit: str) -> None:
        """Stop a unit and wait until systemd has forgotten it; fine if it does not exist."""
        what = f'stop unit "{unit}"'
        try:
            [job] = self._call(what, "StopUnit", "ss", (unit, "replace"))
            self._await_job(what, job)
            while time.monotonic() < self._deadline:
                self._call(what, "GetUnit", "s", (unit,))
                self.reset_failed(unit)
                time.sleep(_POLL_SECONDS)
        except SystemdError as exc:
            if exc.name == _NO_SUCH_UNIT:
                return
            raise
        raise SystemdError(what, f"it is still there after {self._seconds:g} s")

    def reset_failed(self, unit: str) -> None:
        """Let systemd forget a unit that failed; fine if it did not, or does not exist."""
        try:
            self._call(f'reset unit "{unit}"', "ResetFailedUnit", "s", (unit,))
        except SystemdError as exc:
            if exc.name != _NO_SUCH_UNIT:
                raise

    # The connection

    def _connect(self, sockets: Sequence[str]) -> socket.socket:
        causes = []
        for path in sockets:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connected.settimeout(self._left())
                connected.connect(path)
                self._authenticate(connected)
            except OSError as exc:
                connected.close()
                causes.append(f"{path}: {reason(exc)}")
            else:
                self._is_bus = path != SOCKETS[0]
                return connected
        raise SystemdError("connect to systemd", "; ".join(causes))

    def _authenticate(self, connected: socket.socket) -> None:
        """Say who we are, which the other side sees for itself. Source: D-Bus, "Authentication".

        All of it at once, as systemd's own clients do: when the answer comes, systemd has read the
        end of it. It would not see a call that it reads together with that end: nothing more comes
        that wakes it up.
        """
        uid = str(os.geteuid()).encode().hex()
        connected.sendall(f"\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n".encode())
        answer = b""
        while b"\r\n" not in answer:
            connected.settimeout(self._left())
            data = connected.recv(4096)
            if not data or len(answer) > _MAX_LINE_BYTES:
                raise OSError(f"no end of the line {answer[:80]!r}")
            answer += data
        line, _, rest = answer.partition(b"\r\n")
        if not line.startswith(b"OK"):
            raise OSError(f"authentication was answered {line[:80]!r}")
        if rest:
            self._parser.add_data(rest)

    def _first_call(self) -> int:
        """Introduce ourselves to the bus; return the number of systemd's version."""
        what = "connect to systemd"
        if self._is_bus:
            self._call(what, "Hello", address=_BUS)
            self._call(what, "AddMatch", "s", (_JOB_REMOVED,), address=_BUS)
        text = self._get_version(what)
        digits = "".join(itertools.takewhile(str.isdigit, text.removeprefix("v")))
        return int(digits or 0)

    def _get_version(self, what: str) -> str:
        """Return a version such as ``252.38-1~deb12u1``."""
        arguments = (_MANAGER.interface, "Version")
        [(_, version)] = self._call(what, "Get", "ss", arguments, address=_PROPERTIES)
        return str(version)

    def _call(
        self,
        what: str,
        member: str,
        signature: str | None = None,
        arguments: tuple[Any, ...] = (),
        address: DBusAddress = _MANAGER,
    ) -> tuple[Any, ...]:
        """Call a method; return its results. what: the step an error names."""
        serial = next(self._serials)
        message = new_method_call(address, member, signature, arguments)
        try:
            self._socket.settimeout(self._left())
            self._socket.sendall(message.serialise(serial))
        except OSError as exc:
            raise SystemdError(what, reason(exc)) from exc
        while True:
            answer = self._receive(what)
            fields = answer.header.fields
            if fields.get(HeaderFields.reply_serial) != serial:
                continue
            if answer.header.message_type is MessageType.error:
                name = fields.get(HeaderFields.error_name, "")
                raise SystemdError(what, str(answer.body[0]) if answer.body else name, name)
            self._sender = fields.get(HeaderFields.sender)
            result: tuple[Any, ...] = answer.body
            return result

    def _await_job(self, what: str, job: str) -> None:
        while job not in self._results:
            self._receive(what)
        if (result := self._results.pop(job)) != "done":
            raise SystemdError(what, f"systemd's job ended with the result {result}")

    def _receive(self, what: str) -> Message:
        """Return the next message; note it if it is about the end of a job."""
        while (message := self._parser.get_next_message()) is None:
            try:
                self._socket.settimeout(self._left())
                data = self._socket.recv(64 << 10)
            except (TimeoutError, BlockingIOError) as exc:
                raise SystemdError(what, f"systemd did not answer in {self._seconds:g} s") from exc
            except OSError as exc:
                raise SystemdError(what, reason(exc)) from exc
            if not data:
                raise SystemdError(what, "systemd closed the connection")
            self._parser.add_data(data)
        fields = message.header.fields
        # On a bus anybody may send us a signal; the manager is who has answered us.
        if (
            message.header.message_type is MessageType.signal
            and fields.get(HeaderFields.member) == "JobRemoved"
            and fields.get(HeaderFields.sender) == self._sender
        ):
            _, job, _, result = message.body
            self._results[job] = result
        return message

    def _left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.001)
