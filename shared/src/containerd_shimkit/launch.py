"""What containerd executes: pass the command to the zygote, or do it in this process.

Every module imported here is paid for at every container start, so there are few, all built in
or tiny. ``start`` and ``delete`` are sent with their environment, working directory and standard
descriptors; the zygote forks a process that does the work as if it had been executed, and answers
with its exit code.
"""

from __future__ import annotations

import _socket
import os
import sys

from containerd_shimkit.handover import encode, zygote_socket
from containerd_shimkit.runtime import ShimKind

ANSWER_SECONDS = 5.0  # a warm zygote takes milliseconds
DELETE_GREETING_SECONDS = 1.0  # containerd gives the whole `delete` 5 s
FIRST_ANSWER_SECONDS = 20.0  # the zygote was just started and is importing
_FORWARDED = ("start", "delete")


class Unanswered(Exception):
    """The zygote did not do the work; whoever catches this does it."""


def main(kind: ShimKind, build_id: str | None) -> int:
    """Run the command line ``sys.argv`` and return the exit code.

    build_id: names the build whose zygote may be used; None, in a source checkout, means none.
    """
    arguments = sys.argv[1:]
    forbidden = os.environ.get("CONTAINERD_WASM_SHIMS_NO_ZYGOTE")
    if build_id is not None and kind.engine and not forbidden:
        if arguments == ["zygote"]:
            from containerd_shimkit.zygote import serve_zygote

            return serve_zygote(kind, build_id)
        if arguments and arguments[-1] in _FORWARDED:
            try:
                return forward(kind, build_id, arguments)
            except Unanswered:
                pass
    from containerd_shimkit.cli import run

    return run(kind, build_id, arguments)


def forward(kind: ShimKind, build_id: str, arguments: list[str]) -> int:
    """Have the zygote run ``arguments``; return the exit code. Raises Unanswered."""
    path = zygote_socket(kind, build_id)
    seconds = ANSWER_SECONDS if arguments[-1] == "start" else DELETE_GREETING_SECONDS
    connection = _connect(path, seconds)
    if connection is None:
        if arguments[-1] != "start":
            raise Unanswered  # a zygote only for a clean-up is not worth its start
        connection = _start_zygote(path)
        seconds = FIRST_ANSWER_SECONDS
    greeted = b""
    try:
        connection.settimeout(seconds)
        # What waits in the queue of a zygote that hangs stays open, and containerd reads our
        # output until nobody holds it: only one that has just shown itself alive gets it.
        answer = greeted = connection.recv(1)
        if greeted:
            connection.settimeout(ANSWER_SECONDS)
            connection.sendmsg([encode(arguments)], [_standard_descriptors()])
            answer = connection.recv(1)
    except TimeoutError as exc:
        # One that greets does not hang, however long its fork takes on a busy node; and a clean-up
        # has not the time to tell.
        if not greeted and arguments[-1] == "start":
            _forget(path)  # it hangs: the next start makes another one
        raise Unanswered from exc
    except OSError as exc:
        raise Unanswered from exc
    finally:
        connection.close()
    if not answer:
        raise Unanswered
    return answer[0]


def _connect(path: str, seconds: float = ANSWER_SECONDS) -> _socket.socket | None:
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(seconds)  # for a zygote that hangs with a full queue
        connection.connect(path)
    except OSError:
        connection.close()
        return None
    return connection


def _standard_descriptors() -> tuple[int, int, bytes]:
    packed = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2))
    return (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)


def _start_zygote(path: str) -> _socket.socket:
    """Start the zygote unless somebody else just did; return a connection to it."""
    import fcntl

    try:
        directory = os.path.dirname(path)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise Unanswered from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = _connect(path)
        if connection is None:
            _forget(path)
            listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(128)
            _spawn(listener.fileno())
            listener.close()
            connection = _connect(path)
    except OSError as exc:
        raise Unanswered from exc
    finally:
        os.close(lock)
    if connection is None:
        raise Unanswered
    return connection


def _spawn(listener: int) -> None:
    """Execute this program as ``zygote`` in a session of its own, the socket as descriptor 3."""
    null = os.open(os.devnull, os.O_RDWR)
    source = os.dup(listener) if listener == 3 else listener  # dup2 onto itself would keep CLOEXEC
    actions = [
        (os.POSIX_SPAWN_DUP2, null, 0),
        (os.POSIX_SPAWN_DUP2, null, 1),
        (os.POSIX_SPAWN_DUP2, null, 2),
        (os.POSIX_SPAWN_DUP2, source, 3),
    ]
    command = [*sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1], "zygote"]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name == "PATH" or name.startswith("CONTAINERD_WASM_SHIMS_")
    }
    os.posix_spawn(sys.executable, command, environment, file_actions=actions, setsid=True)
    os.close(null)
    if source != listener:
        os.close(source)


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
