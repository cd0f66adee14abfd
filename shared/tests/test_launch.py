"""The launcher, in front of zygotes that a test plays, and of a script in place of Python."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import pytest

from containerd_shimkit import launch
from containerd_shimkit.handover import TAKEN, decode, zygote_socket
from containerd_shimkit.testing import STUB_KIND
from containerd_shimkit.testing.commands import SECONDS

pytestmark = pytest.mark.xdist_group("zygote")  # where the launcher is compiled

DID_IT_ITSELF = 42
SCRIPT = f"""\
#!/bin/sh
[ "$1" = zygote ] && exec sleep 0
echo "itself: $*"
exit {DID_IT_ITSELF}
"""
START = ("-namespace", "n", "-id", "i", "start")


class Launcher:
    """A launcher that executes a script where it would execute Python."""

    def __init__(self, binary: Path, directory: Path) -> None:
        self.binary = binary
        self.env = {"PATH": os.defpath, "CONTAINERD_WASM_SHIMS_RUN": str(directory)}
        self.socket = directory / "stub-b.sock"

    def run(
        self,
        *arguments: str,
        env: Mapping[str, str] = MappingProxyType({}),
        cwd: Path | str = "/",
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(self.binary), *arguments],
            env={**self.env, **env},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )


class PlayedZygote:
    """Takes one message, answers with an exit code, and keeps what it was told."""

    def __init__(self, path: Path, code: int | None = 0) -> None:
        """code: None ends without an answer."""
        self.message = b""
        self.descriptors = 0
        self._code = code
        self._listener = listen(path)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> PlayedZygote:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(SECONDS)
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.settimeout(SECONDS)
            connection.send(b"!")
            self.message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 8)
            self.descriptors = len(descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            connection.send(TAKEN)
            if self._code is not None:
                connection.send(bytes([self._code]))


def listen(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.settimeout(SECONDS)
    listener.bind(str(path))
    listener.listen()
    return listener


@pytest.fixture
def launcher(tmp_path: Path, make_launcher: Callable[[Path, Path, str], Path]) -> Launcher:
    script = tmp_path / "python"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    return Launcher(make_launcher(tmp_path / "shim", script, "b"), tmp_path / "run")


# What it says


@pytest.mark.parametrize(
    "arguments",
    [START, ("", " ", "\n", "ä", "=", "start"), ("\udcff\udc80", "start"), ("delete",)],
    ids=["usual", "odd", "not-utf8", "delete"],
)
def test_arguments_reach_the_zygote(launcher: Launcher, arguments: tuple[str, ...]) -> None:
    with PlayedZygote(launcher.socket) as zygote:
        done = launcher.run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert decode(zygote.message) == (list(arguments), launcher.env, "/")
    assert zygote.descriptors == 3


def test_environment_and_directory_reach_the_zygote(launcher: Launcher, tmp_path: Path) -> None:
    directory = tmp_path / "a\nb \udcff"
    directory.mkdir()
    environment = {"EMPTY": "", "EQUALS": "a=b=c", "BYTES": "\udcfe", "LONG": "x" * 100_000}
    with PlayedZygote(launcher.socket) as zygote:
        assert launcher.run("start", env=environment, cwd=directory).returncode == 0
    assert decode(zygote.message) == (["start"], {**launcher.env, **environment}, str(directory))


def test_what_is_no_variable_is_left_out(launcher: Launcher) -> None:
    """Python has no place for it. (Only a shell, or C, can make one.)"""
    code = (
        "import ctypes, sys; c = ctypes.CDLL(None); P = ctypes.c_char_p;"
        "a = (P * 3)(sys.argv[1].encode(), b'start', None);"
        "e = (P * 5)(b'plain', b'=x', b'A=1', sys.argv[2].encode(), None);"
        "c.execve(a[0], a, e)"
    )
    run = f"CONTAINERD_WASM_SHIMS_RUN={launcher.socket.parent}"
    with PlayedZygote(launcher.socket) as zygote:
        subprocess.run([sys.executable, "-c", code, launcher.binary, run], check=True, timeout=60)
    assert sorted(decode(zygote.message)[1]) == ["A", "CONTAINERD_WASM_SHIMS_RUN"]


@pytest.mark.parametrize("code", [0, 1, 64, 255])
def test_exit_code_comes_back(launcher: Launcher, code: int) -> None:
    with PlayedZygote(launcher.socket, code):
        assert launcher.run(*START).returncode == code


@pytest.mark.parametrize("message", [b"", b"x\0y", b"1", b"1\x001\0start", b"9\x009\0a\0b"])
def test_message_that_is_none_is_refused(message: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        decode(message)


def test_each_build_has_its_zygote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERD_WASM_SHIMS_RUN", "/run/x")
    assert zygote_socket(STUB_KIND, "abc") == "/run/x/stub-abc.sock"
    monkeypatch.delenv("CONTAINERD_WASM_SHIMS_RUN")
    assert zygote_socket(STUB_KIND, "d") == "/run/containerd-wasm-shims/stub-d.sock"


def test_source_checkout_has_no_zygote(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CONTAINERD_WASM_SHIMS_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(sys, "argv", ["shim", "zygote"])
    assert launch.main(STUB_KIND, None) == 64
    assert "zygote" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# What it does itself


def test_other_commands_are_not_forwarded(launcher: Launcher) -> None:
    listener = listen(launcher.socket)
    try:
        done = launcher.run("-info")
        assert (done.returncode, done.stdout) == (DID_IT_ITSELF, b"itself: -info\n")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    finally:
        listener.close()


@pytest.mark.parametrize("flag", ["-v", "--version"])
def test_version_needs_nothing(launcher: Launcher, flag: str) -> None:
    done = launcher.run(flag)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"stub\n", b"")


@pytest.mark.parametrize("size", [0, 100, -1, -40])
def test_damaged_copy_is_said(launcher: Launcher, size: int) -> None:
    """Whatever is missing at its end, or there too much."""
    whole = launcher.binary.read_bytes()
    program = whole[:-1] if size == -1 else whole + b"x" * size if size >= 0 else whole[:size]
    copy = launcher.binary.with_name("copy")
    copy.write_bytes(program)
    copy.chmod(0o755)
    done = subprocess.run([copy, "-v"], capture_output=True, text=True, timeout=60)
    if size == 0:
        assert done.returncode == 0
    else:
        assert (done.returncode, done.stderr) == (
            *(1, f"{copy}: this file is not whole: copy it again\n"),
        )


@pytest.mark.parametrize("command", ["start", "delete"])
def test_what_a_fork_has_taken_is_not_done_twice(launcher: Launcher, command: str) -> None:
    with PlayedZygote(launcher.socket, code=None):
        done = launcher.run(command)
    assert done.returncode == 1
    assert done.stderr == b"the fork of the zygote ended without an answer\n"


@pytest.mark.parametrize(
    ("command", "greets", "kept"),
    [
        pytest.param("start", False, False, id="hung"),
        pytest.param("start", True, True, id="slow-start"),
        pytest.param("delete", True, True, id="slow-delete"),
        pytest.param("delete", False, True, id="busy"),
    ],
)
def test_only_a_zygote_that_hangs_is_given_up(
    launcher: Launcher, command: str, greets: bool, kept: bool
) -> None:
    """It takes its seconds: they are the launcher's own."""
    done = threading.Event()

    def greet() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.send(b"!")
            connection.recv(1)
            done.wait(SECONDS)

    with listen(launcher.socket) as listener, ThreadPoolExecutor(1) as pool:
        greeting = pool.submit(greet) if greets else None
        try:
            assert launcher.run(command).returncode == DID_IT_ITSELF
        finally:
            done.set()
        if greeting is not None:
            greeting.result(SECONDS)
    assert launcher.socket.exists() is kept


@pytest.fixture
def stolen(launcher: Launcher) -> Iterator[socket.socket]:
    """The zygote's socket, held by a user who is not root."""
    with tempfile.TemporaryDirectory(prefix="cw-") as directory:
        Path(directory).chmod(0o777)
        launcher.env["CONTAINERD_WASM_SHIMS_RUN"] = directory
        launcher.socket = Path(directory, launcher.socket.name)
        # The kernel keeps who a listener was when it began to listen: unix(7), SO_PEERCRED.
        os.seteuid(65534)
        try:
            listener = listen(launcher.socket)
        finally:
            os.seteuid(0)
        with listener:
            yield listener


@pytest.mark.root
@pytest.mark.parametrize("command", ["start", "delete"])
def test_stolen_socket_gets_nothing(
    launcher: Launcher, stolen: socket.socket, command: str
) -> None:
    got: list[bytes] = []

    def steal() -> None:
        connection, _ = stolen.accept()
        with connection:
            connection.settimeout(SECONDS)
            try:
                connection.send(b"!")
                got.append(connection.recv(100))
            except OSError:
                got.append(b"")

    with ThreadPoolExecutor(1) as pool:
        theft = pool.submit(steal)
        done = launcher.run(command)
        theft.result(SECONDS)
    assert done.returncode == DID_IT_ITSELF
    assert got == [b""], "not a byte of what it was to do, and no descriptor"
