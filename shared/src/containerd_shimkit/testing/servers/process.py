"""A server's process: started, waited for, stopped and started again, and gone at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from containerd_shimkit.testing.apps import eventually, free_address
from containerd_shimkit.testing.containerd import in_netns

_NOBODY: Final = "nobody"
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0


class Server:
    """One server and its directory, which ``nobody`` owns where the tests run as root."""

    def __init__(
        self,
        directory: Path,
        command: Callable[[Server], Sequence[str]],
        address: tuple[str, int],
        stop_signal: signal.Signals = signal.SIGTERM,
        ready: Callable[[Server], bool] = lambda _: True,
        as_nobody: bool = True,
        netns: Path | None = None,
    ) -> None:
        """command: what runs the server in the foreground; its first word is a path.

        address: of the loopback; see ``free_address``.
        stop_signal: what it ends at once on, whoever is connected.
        ready: whether it serves; asked once its port is open.
        as_nobody: a program of this checkout may lie where only its owner reads.
        netns: the network namespace that it serves, where only ``ready`` can see it; not as nobody.
        """
        self.directory = directory
        self.host, self.port = address
        self._command = command
        self._stop_signal = stop_signal
        self._ready = ready
        self._user = server_user() if as_nobody and netns is None else None
        self._netns = netns
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """``127.1.2.3:4567``."""
        return f"{self.host}:{self.port}"

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self.directory / "server.log"

    def write_file(self, name: str, content: bytes) -> Path:
        """Write a file that only the server's user can read; return its path."""
        path = self.directory / name
        path.touch(0o600)
        path.write_bytes(content)
        _give_to_server(path)
        return path

    def run(self, *command: str) -> str:
        """Run a command as the server's user, to its end; return what it printed."""
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            cwd=self.directory,
            user=server_user(),
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Return when the server is ready."""
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                [*in_netns(self._netns), *self._command(self)],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._user,
                start_new_session=True,
            )

        def accepts() -> bool:
            assert process.poll() is None, f"the server ended: {self.log.read_text()[-2000:]}"
            if self._netns is not None:
                return self._ready(self)
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):
                return self._ready(self)
            return False

        eventually(accepts, f"{process.args!r} is ready", _START_SECONDS)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the running server."""
        assert self._process is not None, "the server does not run"
        self._process.send_signal(number)

    def stop(self, number: signal.Signals | None = None) -> None:
        """End the server; ``start`` runs it again, on the same port with the same files."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number or self._stop_signal)
        try:
            process.wait(_STOP_SECONDS)
        finally:
            # Whoever did not end, and the children that some servers have.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_STOP_SECONDS)


def server_user() -> str | None:
    """Return whom servers run as: several refuse to be root. None is whoever runs the tests."""
    return _NOBODY if os.geteuid() == 0 else None


def _give_to_server(path: Path) -> None:
    if (name := server_user()) is not None:
        user = pwd.getpwnam(name)
        os.chown(path, user.pw_uid, user.pw_gid)


def need_program(name: str, package: str, *directories: Path) -> str:
    """Return the path of a server's program; skip the test where it is not installed.

    directories: where to look besides PATH.
    """
    more = map(str, (*directories, "/usr/sbin", "/usr/local/sbin"))
    paths = ":".join((os.environ.get("PATH", os.defpath), *more))
    found = shutil.which(name, path=paths)
    if found is None:
        pytest.skip(f"needs {name}: apt-get install {package}")
    return found


@contextmanager
def server_directory() -> Iterator[Path]:
    """A directory of the servers' user, short enough for a socket's path; removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="srv-"))
    try:
        _give_to_server(directory)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running_server(
    command: Callable[[Server], Sequence[str]],
    prepare: Callable[[Server], None] | None = None,
    address: tuple[str, int] | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
    ready: Callable[[Server], bool] = lambda _: True,
    as_nobody: bool = True,
    netns: Path | None = None,
) -> Iterator[Server]:
    """A server that accepts connections.

    command: returns the command line.  prepare: makes its files before the first start.
    address: None is any free one.  The others: see ``Server``.
    """
    with server_directory() as directory:
        server = Server(
            directory, command, address or free_address(), stop_signal, ready, as_nobody, netns
        )
        try:
            if prepare is not None:
                prepare(server)
            server.start()
            yield server
        finally:
            server.stop()
