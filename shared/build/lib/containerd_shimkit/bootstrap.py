"""``start`` and ``delete``: what containerd runs around a task's life.

``start`` finds the pod's shim or becomes it, and prints the address of its socket. What is
printed depends on who asks: containerd 1.6 takes a plain address, 1.7 and later announce
``MAX_SHIM_VERSION`` and take JSON, 2.3 sends ``BootstrapParams`` on stdin and takes
``BootstrapResult``. A bundle without ``config.json`` is a pod's that is to be made with the sandbox
API. With version 3, which 2.x takes and 1.7 does not, containerd runs neither ``start`` nor
``delete`` for the other containers of a pod.

``delete`` cleans up after a task whose shim may be dead: it must be right when run twice, at
once, after a proper end, and while the pod's shim still serves other containers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from containerd_shimkit.errors import BundleError, SandboxError, UnavailableError
from containerd_shimkit.hooks import run_owed_poststop
from containerd_shimkit.linux.cgroups import Cgroup, open_cgroup
from containerd_shimkit.linux.mounts import unmount
from containerd_shimkit.linux.syscalls import pidfd_open, pidfd_send_signal
from containerd_shimkit.oci.bundle import Bundle
from containerd_shimkit.proto.bootstrap_pb2 import BootstrapParams, BootstrapResult
from containerd_shimkit.proto.task_pb2 import DeleteResponse
from containerd_shimkit.task.record import InitRecord

_ADDRESS_FILE: Final = "address"
_SOCKET_DIRECTORY: Final = "/run/containerd/s"
_MAX_SOCKET_PATH: Final = 106  # bytes, what containerd accepts; the kernel's limit is 107
_MAX_PARAMS_BYTES: Final = 4 << 20
_STDIN_SECONDS: Final = 2.0
_KILLED: Final = 128 + signal.SIGKILL
_DELETE_SECONDS: Final = 2.5
"""For all waits of ``delete`` together: containerd gives it 5 s, a hung zygote takes its part."""


@dataclass(frozen=True, slots=True)
class StartArguments:
    """What containerd passes to ``start``."""

    namespace: str
    address: str
    publish_binary: str
    task_id: str
    bundle: str
    debug: bool


# start


def start_shim(arguments: StartArguments) -> socket.socket | None:
    """Print the address of the pod's shim; return the listening socket if this is to become it.

    Raises BundleError, UnavailableError.
    """
    bundle = Path(arguments.bundle)
    params = _read_params(arguments)
    is_sandbox = (params is not None or _takes_json()) and not (bundle / "config.json").exists()
    group = (None if is_sandbox else Bundle.load(bundle).group) or arguments.task_id
    directory = params.socket_dir if params and params.socket_dir else _SOCKET_DIRECTORY
    path = socket_path(arguments.address, arguments.namespace, group, directory)
    address = f"unix://{path}"
    # containerd 1.6 reconnects by this file; newer ones write their own bootstrap.json. Before the
    # socket is made: if the disk is full, nothing is left outside of the bundle.
    (bundle / _ADDRESS_FILE).write_text(address)
    listener = _listen(path)
    version = 3 if params is not None or is_sandbox else 2
    sys.stdout.buffer.write(_bootstrap_answer(address, version, params))
    sys.stdout.buffer.flush()
    return listener


def socket_path(
    address: str, namespace: str, group: str, directory: str = _SOCKET_DIRECTORY
) -> str:
    """Return the path of a group's socket. Source: containerd pkg/shim ``SocketAddress``.

    Raises UnavailableError if the path is longer than containerd accepts.
    """
    digest = hashlib.sha256(os.fsencode(Path(address, namespace, group))).hexdigest()
    path = f"{directory}/{digest}"
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise UnavailableError(f"socket path {path!r} exceeds {_MAX_SOCKET_PATH} bytes")
    return path


def _listen(path: str) -> socket.socket | None:
    """Return the group's new listening socket, or None if a shim already listens there."""
    directory = Path(path).parent
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Between bind and listen a living socket looks like one that was left behind.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_listening(path):
            return None
        Path(path).unlink(missing_ok=True)  # left by a shim that was killed
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        Path(path).chmod(0o600)
        listener.listen(128)
        return listener
    finally:
        os.close(lock)


def is_listening(path: str) -> bool:
    """Whether a process accepts connections at the socket ``path``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (BlockingIOError, TimeoutError):
            return True  # somebody listens, who has many to accept before us
        except OSError:
            return False
        return True


def _read_params(arguments: StartArguments) -> BootstrapParams | None:
    """Return containerd 2.3's parameters, or None: older ones send options or nothing on stdin.

    The two are told apart by their contents: parameters repeat the task and its namespace.
    """
    try:
        data = _read_all(0)
    except (OSError, ValueError):
        return None
    if not data:
        return None
    try:
        params = BootstrapParams.FromString(data)
    except DecodeError:
        return None
    same = (params.instance_id, params.namespace) == (arguments.task_id, arguments.namespace)
    return params if same else None


def _read_all(descriptor: int) -> bytes:
    """Read to the end, or for ``_STDIN_SECONDS`` if nobody closes the other one."""
    chunks: list[bytes] = []
    size, deadline = 0, time.monotonic() + _STDIN_SECONDS
    while size < _MAX_PARAMS_BYTES:
        left = max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([descriptor], [], [], left)
        if not readable or not (chunk := os.read(descriptor, 64 << 10)):
            break
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _takes_json() -> bool:
    """Whether containerd is 1.7 or later."""
    return bool(os.environ.get("MAX_SHIM_VERSION"))


def _bootstrap_answer(address: str, version: int, params: BootstrapParams | None) -> bytes:
    if params is not None:
        result = BootstrapResult(version=version, address=address, protocol="ttrpc")
        return result.SerializeToString()
    if _takes_json():
        return json.dumps({"version": version, "address": address, "protocol": "ttrpc"}).encode()
    return address.encode()


# delete


def delete_task(address: str, namespace: str, task_id: str, bundle_path: str) -> DeleteResponse:
    """Kill what is left of the task, remove its cgroup, mount and socket. Idempotent."""
    deadline = time.monotonic() + _DELETE_SECONDS
    path = Path(bundle_path)
    record = InitRecord.load(path)
    group, cgroups_path = task_id, record.cgroups_path if record else ""
    cgroup: Cgroup | None = None
    with contextlib.suppress(BundleError):  # half-removed: clean what can be found
        bundle = Bundle.load(path)
        group, cgroups_path = bundle.group or task_id, bundle.spec.linux.cgroups_path
    with contextlib.suppress(Exception):
        if cgroups_path:
            cgroup = open_cgroup(cgroups_path, task_id)
            cgroup.kill_all()  # thaws, too: a paused container would not die before that
    with contextlib.suppress(OSError):
        if record is not None:
            _kill_and_wait(record, _seconds_until(deadline))
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if record is not None and record.runtime:
            command = [*record.runtime, "delete", "--force", task_id]
            half = _seconds_until(deadline) / 2  # the cgroup has a part, too
            # One that takes longer goes on behind our back: killed, it would leave its state.
            # It has no streams of ours, whose end containerd waits for.
            null = subprocess.DEVNULL
            runtime = subprocess.Popen(
                command, stdin=null, stdout=null, stderr=null, start_new_session=True
            )
            runtime.wait(half)
    with contextlib.suppress(Exception):
        if cgroup is not None:
            cgroup.delete(_seconds_until(deadline))
    with contextlib.suppress(SandboxError):
        unmount(str(path / "rootfs"))  # an ordinary Linux container's; a guest's went with its init
    with contextlib.suppress(UnavailableError):
        socket_file = _written_socket(path) or socket_path(address, namespace, group)
        if not is_listening(socket_file):
            Path(socket_file).unlink(missing_ok=True)
    for failure in run_owed_poststop(path, _seconds_until(deadline)):
        print(failure, file=sys.stderr)  # containerd logs it
    response = DeleteResponse(pid=record.pid if record else 0, exit_status=_KILLED)
    response.exited_at.FromNanoseconds(time.time_ns())
    return response


def _written_socket(bundle: Path) -> str:
    """Return the path that ``start`` wrote: ``delete`` is not told of containerd's socket_dir."""
    try:
        return (bundle / _ADDRESS_FILE).read_text().removeprefix("unix://")
    except OSError:
        return ""


def _seconds_until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _kill_and_wait(record: InitRecord, seconds: float) -> None:
    """Kill the container's init, whose death ends everything in its pid namespace."""
    try:
        process = pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        # The descriptor pins the process; only then is it safe to compare who it is.
        if record.is_alive():
            pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], seconds)
    except ProcessLookupError:
        pass
    finally:
        os.close(process)
