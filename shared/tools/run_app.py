"""Run an image in the foreground until Ctrl-C: what ``make run_spin`` and others run.

It uses the containerd of ``CONTAINERD_ADDRESS``, or starts a private one in ``.run`` and removes
that again. ``PORT`` is where the app shall listen, if it is not set where the app itself says. The
exit code is the app's.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from containerd_shimkit.testing.containerd import SYSTEM_PATH, Containerd, ContainerdError

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0  # twice what an app gives requests in flight

Ctr = Callable[..., list[str]]

DEFAULTS = {
    "spin": ("SPIN_HTTP_LISTEN_ADDR", 80),
    "slight": ("SLIGHT_HTTP_LISTEN_ADDR", 3000),
    "wws": ("WWS_HTTP_LISTEN_ADDR", 3000),
}
"""For each kind of shim: the variable that says where an app listens, and the example's port."""


class RunError(Exception):
    """The app cannot be run here; the message is one sentence for the user."""


class Stopped(Exception):
    """SIGINT or SIGTERM came before the app ran."""


class StopRequest:
    """Remembers SIGINT and SIGTERM; from then on both are ignored, so that cleaning up is not."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def check(self) -> None:
        if self.requested:
            raise Stopped


def run(kind: str, image: str, name: str, path: str, stop: StopRequest) -> int:
    """Run ``dist/images/<image>.tar`` by the shim of that kind; return the exit code."""
    port = _port(os.environ.get("PORT") or str(DEFAULTS[kind][1]))
    archive = REPOSITORY / "dist" / "images" / f"{image}.tar"
    shim = REPOSITORY / "dist" / f"containerd-shim-{kind}-v1"
    for file, target in ((archive, "images"), (shim, "build")):
        if not file.exists():
            raise RunError(f"{file} is not there: make {target}")
    if os.geteuid() != 0:
        raise RunError("containers need root: run this as root, or with sudo")
    _check_port_is_free(port)
    with _containerd() as ctr:
        reference = f"docker.io/library/wasmtest_{image}:latest"
        known = reference in (_call(ctr("image", "list", "-q")) or "").split()
        _call(ctr("image", "import", str(archive)))
        try:
            stop.check()
            container = f"{name}-{secrets.token_hex(3)}"
            return _run_container(ctr, kind, reference, container, port, path, stop)
        finally:
            if not known:
                _call(ctr("image", "delete", reference), check=False)


def _run_container(
    ctr: Ctr, kind: str, reference: str, name: str, port: int, path: str, stop: StopRequest
) -> int:
    command = ctr("run", "--rm", "--net-host", "--runtime", f"io.containerd.{kind}.v1")
    setting, default_port = DEFAULTS[kind]
    if port != default_port:
        command += ["--env", f"{setting}=0.0.0.0:{port}"]
    command += [reference, name]
    # A session of its own: Ctrl-C is for us, and ends the app the way its manifest expects.
    container = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    shown = "/" if path.startswith("/.well-known/") else path
    try:
        url = f"http://127.0.0.1{'' if port == 80 else f':{port}'}{shown}"
        if _wait_until_serving(container, port, path, stop):
            print(f"running; try: curl {url}   (Ctrl-C ends it)", flush=True)
        while not stop.requested:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = container.wait(0.2)
                if code == 1 and os.environ.get("CONTAINERD_ADDRESS"):
                    print(f"If {kind}'s shim was not found: make install, or give its directory")
                    print("to that containerd's PATH.", flush=True)
                return code
        return _end(ctr, container, name)
    finally:
        if container.poll() is None:
            _call(ctr("task", "delete", "--force", name), check=False)
            _call(ctr("container", "delete", name), check=False)
            container.kill()
            container.wait()


def _wait_until_serving(
    container: subprocess.Popen[bytes], port: int, path: str, stop: StopRequest
) -> bool:
    """Return whether the app answered 200; False if it ended, or we are to stop, before that."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if stop.requested or container.poll() is not None:
            return False
        if _status(port, path) == 200:
            return True
        time.sleep(0.02)
    raise RunError(f"the app does not answer {path} with 200 within {START_TIMEOUT:g} s")


def _end(ctr: Ctr, container: subprocess.Popen[bytes], name: str) -> int:
    """Ask the app to end; return its exit code. What is left after 20 s is killed by the caller."""
    print("stopping", flush=True)
    deadline = time.monotonic() + STOP_TIMEOUT
    while time.monotonic() < deadline:
        # Refused while the task is still being started: ask again.
        asked = _call(ctr("task", "kill", "--signal", "SIGTERM", name), check=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return container.wait(1.0 if asked is None else STOP_TIMEOUT)
    raise RunError(f"the app did not end within {STOP_TIMEOUT:g} s and was killed")


def _status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


@contextmanager
def _containerd() -> Iterator[Ctr]:
    """Yield what makes a ``ctr`` command line for the user's containerd, or for a private one."""
    if address := os.environ.get("CONTAINERD_ADDRESS"):
        namespace = os.environ.get("CONTAINERD_NAMESPACE") or "default"
        if shutil.which("ctr") is None:
            raise RunError("there is no ctr on the PATH: apt-get install containerd")
        with socket.socket(socket.AF_UNIX) as client:
            if reason := client.connect_ex(address.removeprefix("unix://")):
                raise RunError(f"no containerd answers at {address}: {os.strerror(reason)}")
        yield lambda *args: ["ctr", "--address", address, "-n", namespace, *args]
        return

    for program in ("containerd", "ctr"):
        if shutil.which(program, path=SYSTEM_PATH) is None:
            raise RunError(f"there is no {program} on the PATH: apt-get install containerd runc")
    directory = REPOSITORY / ".run" / "app"
    with _locked(directory):
        daemon = Containerd(
            directory / "containerd",
            shim_dir=REPOSITORY / "dist",
            shims_cache=REPOSITORY / "build" / "run" / "cache",
            shims_root=REPOSITORY / "build" / "run" / "root",
        )
        with daemon:
            yield daemon.ctr_command


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold ``directory`` for this process; remove it at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another app runs in {directory}: end that one first") from None
        try:
            yield
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            with contextlib.suppress(OSError):  # something else may be running in it
                directory.parent.rmdir()


def _call(command: list[str], *, check: bool = True) -> str | None:
    """Run to the end and return what was printed, or None if it failed and that is no error."""
    environment = os.environ | {"PATH": f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"}
    result = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, env=environment
    )
    if result.returncode == 0:
        return result.stdout
    if check:
        raise RunError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return None


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    raise RunError(f"PORT is {text!r}, which is no number from 1 to 65535")


def _check_port_is_free(port: int) -> None:
    with socket.socket() as listener:
        # As the app will: connections of the last run that are closing do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("0.0.0.0", port))
            listener.listen()
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise RunError(f"cannot listen on port {port}: {exc.strerror}") from exc
            raise RunError(f"port {port} is in use: free it, or choose another by PORT=") from exc


def main() -> int:
    parser = argparse.ArgumentParser(description="Run an example image until Ctrl-C.")
    parser.add_argument("kind", choices=sorted(DEFAULTS), help="whose image and shim")
    parser.add_argument("name", help="what the container's id begins with")
    parser.add_argument("--image", help="of dist/images; the kind's example if none is named")
    parser.add_argument("--path", help="answers 200 when the app is up; the example's is /hello")
    options = parser.parse_args()
    health = f"/.well-known/{options.kind}/health"
    path = options.path or (health if options.image else "/hello")
    stop = StopRequest()
    try:
        return run(options.kind, options.image or options.kind, options.name, path, stop)
    except (RunError, ContainerdError) as exc:
        print(f"run_{options.kind}: {exc}", file=sys.stderr)
        return 1
    except Stopped:
        return 0


if __name__ == "__main__":
    sys.exit(main())
