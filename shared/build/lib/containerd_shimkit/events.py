"""Task events, and how they reach containerd.

Rules:

- ``publish`` never waits and never fails: the state of a task does not depend on who is told of it.
- Events arrive in the order of ``publish``, since one task sends them one after another. That is
  what keeps TaskCreate < TaskStart < TaskExit < TaskDelete; containerd does not sort.
- containerd may be restarting: an event is tried again for ``RETRY_TIMEOUT`` from when it was
  published, then dropped with one line in the log.
- Nobody removes duplicates. An event is sent again only if the connection failed or containerd
  said that it is unavailable, never because an answer was late.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from containerd_shimkit.errors import InvalidArgumentError, Status
from containerd_shimkit.linux.syscalls import memfd_create
from containerd_shimkit.proto import events_pb2
from containerd_shimkit.proto.forward_pb2 import ForwardRequest
from containerd_shimkit.proto.types_pb2 import Envelope
from containerd_shimkit.reaper import Reaper
from containerd_shimkit.rpc.client import Client
from containerd_shimkit.rpc.errors import LocalProtocolError, RemoteError, RemoteProtocolError
from containerd_shimkit.spawn import spawn

# Source: containerd core/runtime/events.go.
TASK_CREATE = "/tasks/create"
TASK_START = "/tasks/start"
TASK_OOM = "/tasks/oom"
TASK_EXIT = "/tasks/exit"
TASK_DELETE = "/tasks/delete"
TASK_EXEC_ADDED = "/tasks/exec-added"
TASK_EXEC_STARTED = "/tasks/exec-started"
TASK_PAUSED = "/tasks/paused"
TASK_RESUMED = "/tasks/resumed"

TOPICS: dict[type[Message], str] = {
    events_pb2.TaskCreate: TASK_CREATE,
    events_pb2.TaskStart: TASK_START,
    events_pb2.TaskOOM: TASK_OOM,
    events_pb2.TaskExit: TASK_EXIT,
    events_pb2.TaskDelete: TASK_DELETE,
    events_pb2.TaskExecAdded: TASK_EXEC_ADDED,
    events_pb2.TaskExecStarted: TASK_EXEC_STARTED,
    events_pb2.TaskPaused: TASK_PAUSED,
    events_pb2.TaskResumed: TASK_RESUMED,
}

EVENTS_SERVICE = "containerd.services.events.ttrpc.v1.Events"

QUEUE_SIZE = 2048
"""Events waiting; containerd's own shims hold as many."""

RETRY_TIMEOUT = 5.0
ATTEMPT_TIMEOUT = 1.0
"""The least that an attempt is given, however old the event is."""
FIRST_DELAY = 0.05
MAX_DELAY = 1.0
CLOSE_TIMEOUT = 2.0  # less than the 3 s containerd gives Shutdown

MAX_STDERR_BYTES = 1024


class Publisher(Protocol):
    """Tells containerd, or a test, what happens to tasks."""

    def publish(self, event: Message) -> None:
        """Take ``event``, one of ``TOPICS``, to be delivered after those before it."""

    async def close(self) -> None:
        """Deliver what is waiting, within a bounded time, and let go of the connection."""


class ContainerdPublisher:
    """Sends events over ttrpc, or where containerd gave no such address by its ``publish``."""

    def __init__(
        self,
        namespace: str,
        ttrpc_address: str | None,
        publish_binary: str | None,
        grpc_address: str | None,
        reaper: Reaper,
        log: logging.Logger,
    ) -> None:
        """
        ttrpc_address: ``TTRPC_ADDRESS`` of the environment.
        publish_binary, grpc_address: ``-publish-binary`` and ``-address`` of the command line.
        Raises InvalidArgumentError if there is neither way.
        """
        self._namespace = namespace
        self._log = log
        self._route: _Route
        if ttrpc_address:
            self._route = _TtrpcRoute(ttrpc_address)
        elif publish_binary and grpc_address:
            self._route = _BinaryRoute(reaper, publish_binary, grpc_address)
        else:
            raise InvalidArgumentError("no ttrpc address and no publish binary to send events by")
        self._queue: asyncio.Queue[_Item] = asyncio.Queue(QUEUE_SIZE)
        self._sending: asyncio.Task[None] | None = None
        self._closed = False

    def publish(self, event: Message) -> None:
        """See ``Publisher``; to be called in the event loop."""
        loop = asyncio.get_running_loop()
        envelope = Envelope(
            namespace=self._namespace,
            topic=TOPICS[type(event)],
            # containerd looks types up by the bare name, without "type.googleapis.com/".
            event=Any(type_url=event.DESCRIPTOR.full_name, value=event.SerializeToString()),
        )
        envelope.timestamp.GetCurrentTime()
        item = _Item(envelope, loop.time() + RETRY_TIMEOUT)
        if self._closed:
            self._drop(item, "the publisher is closed")
            return
        try:
            self._queue.put_nowait(item)
        except asyncio.QueueFull:
            self._drop(item, f"{QUEUE_SIZE} others are waiting")
            return
        if self._sending is None:
            self._sending = loop.create_task(self._send_queue())

    async def close(self) -> None:
        """See ``Publisher``."""
        self._closed = True
        if self._sending is not None:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._queue.join()
            except TimeoutError:
                left = self._queue.qsize() + 1
                self._log.warning("%d events were not sent within %g s", left, CLOSE_TIMEOUT)
            self._sending.cancel()
            await asyncio.wait([self._sending])
        await self._route.close()

    async def _send_queue(self) -> None:
        while True:
            item = await self._queue.get()
            try:
                await self._send(item)
            except Exception:
                # The next events must still go out.
                self._log.exception("event %s was not sent", item.envelope.topic)
            finally:
                self._queue.task_done()

    async def _send(self, item: _Item) -> None:
        loop = asyncio.get_running_loop()
        delay = FIRST_DELAY
        while True:
            try:
                timeout = max(item.deadline - loop.time(), ATTEMPT_TIMEOUT)
                await self._route.send(item.envelope, timeout)
                return
            except (OSError, RemoteError, LocalProtocolError, RemoteProtocolError) as exc:
                if not _is_transient(exc) or loop.time() + delay > item.deadline:
                    self._drop(item, str(exc) or type(exc).__name__)
                    return
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_DELAY)

    def _drop(self, item: _Item, reason: str) -> None:
        self._log.warning("event %s dropped: %s", item.envelope.topic, reason)


@dataclass(frozen=True, slots=True)
class _Item:
    envelope: Envelope
    deadline: float
    """Time of the event loop, seconds."""


def _is_transient(exc: Exception) -> bool:
    if isinstance(exc, RemoteError):
        return exc.status is Status.UNAVAILABLE
    # A protocol error is no OSError, and neither peer will get better by repetition.
    return isinstance(exc, OSError)


class _Route(Protocol):
    """A way to containerd."""

    async def send(self, envelope: Envelope, timeout: float) -> None:
        """Deliver ``envelope`` or raise: OSError if another attempt may succeed."""

    async def close(self) -> None: ...


class _TtrpcRoute:
    """One connection, made when it is needed and again when it was lost."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._client: Client | None = None

    async def send(self, envelope: Envelope, timeout: float) -> None:
        if self._client is None or self._client.closed:
            self._client = await Client.connect(self._address, timeout)
        request = ForwardRequest(envelope=envelope)
        await self._client.call(EVENTS_SERVICE, "Forward", request, Empty, timeout=timeout)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


class _BinaryRoute:
    """``containerd publish``, once for each event.

    Not by ``asyncio.create_subprocess_exec``: until Python 3.12 that waits for the child in a
    thread, and this process forks. A pidfd needs none, and files instead of pipes no copying.
    """

    def __init__(self, reaper: Reaper, binary: str, grpc_address: str) -> None:
        self._reaper = reaper
        self._binary = binary
        self._grpc_address = grpc_address

    async def send(self, envelope: Envelope, timeout: float) -> None:
        argv = [self._binary, "--address", self._grpc_address, "publish"]
        argv += ["--topic", envelope.topic, "--namespace", envelope.namespace]
        with (
            os.fdopen(memfd_create("event"), "r+b") as stdin,
            os.fdopen(memfd_create("stderr"), "r+b") as stderr,
        ):
            stdin.write(envelope.event.SerializeToString())
            stdin.seek(0)
            status = await _run(self._reaper, argv, stdin.fileno(), stderr.fileno(), timeout)
            if status != 0:
                stderr.seek(0)
                said = stderr.read(MAX_STDERR_BYTES).decode(errors="replace").strip()
                raise OSError(f"{self._binary} publish ended with {status}: {said}")

    async def close(self) -> None:
        pass


async def _run(reaper: Reaper, argv: list[str], stdin: int, stderr: int, timeout: float) -> int:
    """Run ``argv`` and return its exit status. asyncio's own way would start a thread for it.

    Raises OSError if it cannot be run, TimeoutError after ``timeout`` seconds; it is killed then.
    """
    with open(os.devnull, "wb") as null:
        pid = spawn(argv, os.environ, (stdin, null.fileno(), stderr))
    ended = reaper.watch(pid)
    try:
        async with asyncio.timeout(timeout):
            return (await asyncio.shield(ended)).status
    except BaseException as exc:
        os.kill(pid, signal.SIGKILL)
        await ended
        if isinstance(exc, TimeoutError):
            raise TimeoutError(f"{argv[0]} did not end within {timeout:g} s") from None
        raise
