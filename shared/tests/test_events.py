from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from containerd_shimkit import events
from containerd_shimkit.errors import InvalidArgumentError, UnavailableError, status_of
from containerd_shimkit.events import TOPICS, ContainerdPublisher, Publisher
from containerd_shimkit.proto import events_pb2
from containerd_shimkit.proto.events_pb2 import TaskCreate, TaskDelete, TaskExit, TaskStart
from containerd_shimkit.proto.forward_pb2 import ForwardRequest
from containerd_shimkit.proto.types_pb2 import Envelope
from containerd_shimkit.reaper import Reaper
from containerd_shimkit.rpc.server import Method, Server
from containerd_shimkit.testing.publisher import MemoryPublisher

log = logging.getLogger("test.events")


class Containerd:
    """containerd's event service; ``failures`` are raised before events are accepted."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[Envelope] = asyncio.Queue()
        self.failures: list[Exception] = []

    async def forward(self, request: ForwardRequest) -> Empty:
        if self.failures:
            raise self.failures.pop(0)
        self.received.put_nowait(request.envelope)
        return Empty()

    @asynccontextmanager
    async def running(self, path: Path) -> AsyncIterator[None]:
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen(16)
        services = {events.EVENTS_SERVICE: {"Forward": Method(ForwardRequest, self.forward)}}
        server = Server(services, status_of=status_of)
        await server.start(sock)
        try:
            yield
        finally:
            await server.close()

    async def next(self) -> Envelope:
        return await asyncio.wait_for(self.received.get(), 10)


@asynccontextmanager
async def publishing(path: Path) -> AsyncIterator[ContainerdPublisher]:
    reaper = Reaper(subreaper=False)
    publisher = ContainerdPublisher("k8s.io", f"unix://{path}", None, None, reaper, log)
    try:
        yield publisher
    finally:
        await publisher.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "containerd.sock.ttrpc"


def test_every_event_has_a_topic() -> None:
    messages = events_pb2.DESCRIPTOR.message_types_by_name
    named = {event.DESCRIPTOR.name for event in TOPICS}
    assert named == set(messages) - {"TaskIO"}
    assert len(set(TOPICS.values())) == len(TOPICS)


def test_envelope(path: Path) -> None:
    async def main() -> None:
        containerd = Containerd()
        async with containerd.running(path), publishing(path) as publisher:
            event = TaskExit(container_id="c", id="c", pid=7, exit_status=137)
            publisher.publish(event)
            envelope = await containerd.next()
        assert (envelope.namespace, envelope.topic) == ("k8s.io", "/tasks/exit")
        assert envelope.event.type_url == "containerd.events.TaskExit"
        assert TaskExit.FromString(envelope.event.value) == event
        assert abs(envelope.timestamp.seconds - time.time()) < 60

    asyncio.run(main())


def test_events_keep_their_order(path: Path) -> None:
    async def main() -> None:
        containerd = Containerd()
        async with containerd.running(path), publishing(path) as publisher:
            for number in range(200):
                publisher.publish(TaskStart(container_id=str(number), pid=number))
            received = [await containerd.next() for _ in range(200)]
        pids = [TaskStart.FromString(envelope.event.value).pid for envelope in received]
        assert pids == list(range(200))

    asyncio.run(main())


def test_event_is_what_it_was_when_published(path: Path) -> None:
    async def main() -> None:
        containerd = Containerd()
        async with containerd.running(path), publishing(path) as publisher:
            event = TaskStart(pid=1)
            publisher.publish(event)
            event.pid = 2
            assert TaskStart.FromString((await containerd.next()).event.value).pid == 1

    asyncio.run(main())


def test_restart_of_containerd_loses_nothing(path: Path) -> None:
    async def main() -> None:
        containerd = Containerd()
        async with publishing(path) as publisher:
            async with containerd.running(path):
                publisher.publish(TaskCreate(container_id="c"))
                assert (await containerd.next()).topic == "/tasks/create"
            publisher.publish(TaskStart(container_id="c"))
            publisher.publish(TaskExit(container_id="c"))
            await asyncio.sleep(0.2)
            async with containerd.running(path):
                assert (await containerd.next()).topic == "/tasks/start"
                assert (await containerd.next()).topic == "/tasks/exit"

    asyncio.run(main())


def test_containerd_that_is_not_ready_is_asked_again(path: Path) -> None:
    async def main() -> None:
        containerd = Containerd()
        containerd.failures = [UnavailableError("starting")] * 2
        async with containerd.running(path), publishing(path) as publisher:
            publisher.publish(TaskExit())
            publisher.publish(TaskDelete())
            assert (await containerd.next()).topic == "/tasks/exit"
            assert (await containerd.next()).topic == "/tasks/delete"

    asyncio.run(main())


def test_refused_event_is_dropped_with_one_line(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        containerd = Containerd()
        containerd.failures = [InvalidArgumentError("no namespace")]
        async with containerd.running(path), publishing(path) as publisher:
            publisher.publish(TaskExit())
            publisher.publish(TaskDelete())
            assert (await containerd.next()).topic == "/tasks/delete"

    asyncio.run(main())
    [record] = [record for record in caplog.records if record.name == log.name]
    assert record.getMessage() == ("event /tasks/exit dropped: invalid_argument: no namespace")


def test_event_is_dropped_after_a_bounded_time(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "RETRY_TIMEOUT", 0.2)

    async def main() -> None:
        async with publishing(path) as publisher:
            publisher.publish(TaskExit())

    asyncio.run(main())
    assert "event /tasks/exit dropped: " in caplog.text
    assert "No such file" in caplog.text


def test_full_queue_drops_and_never_waits(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUEUE_SIZE", 2)

    async def main() -> None:
        containerd = Containerd()
        async with containerd.running(path), publishing(path) as publisher:
            for _ in range(3):
                publisher.publish(TaskExit())
            await publisher.close()
        assert containerd.received.qsize() == 2

    asyncio.run(main())
    assert "event /tasks/exit dropped: 2 others are waiting" in caplog.text


def test_close_sends_what_is_waiting(path: Path) -> None:
    async def main() -> None:
        containerd = Containerd()
        async with containerd.running(path):
            async with publishing(path) as publisher:
                for _ in range(10):
                    publisher.publish(TaskExit())
            assert containerd.received.qsize() == 10

    asyncio.run(main())


def test_close_gives_up_in_time(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "CLOSE_TIMEOUT", 0.1)

    async def main() -> None:
        async with publishing(path) as publisher:
            publisher.publish(TaskExit())
            publisher.publish(TaskDelete())
            await publisher.close()
            publisher.publish(TaskDelete())

    asyncio.run(main())
    assert "2 events were not sent within 0.1 s" in caplog.text
    assert "the publisher is closed" in caplog.text


def test_publisher_without_a_way_is_refused() -> None:
    async def main() -> None:
        reaper = Reaper(subreaper=False)
        with pytest.raises(InvalidArgumentError, match="no ttrpc address"):
            ContainerdPublisher("default", "", "/usr/bin/containerd", None, reaper, log)

    asyncio.run(main())


def binary(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "containerd"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def publish_by_binary(path: Path, *sent: Message) -> None:
    async def main() -> None:
        reaper = Reaper(subreaper=False)
        address = "/run/containerd.sock"
        publisher = ContainerdPublisher("k8s.io", "", str(path), address, reaper, log)
        for event in sent:
            publisher.publish(event)
        await publisher.close()

    asyncio.run(main())


def test_binary_gets_arguments_and_the_event(tmp_path: Path) -> None:
    path = binary(tmp_path, f'echo "$@" >> {tmp_path}/argv; cat > {tmp_path}/stdin')
    publish_by_binary(path, TaskStart(pid=1), TaskExit(pid=7))
    assert (tmp_path / "argv").read_text().splitlines() == [
        "--address /run/containerd.sock publish --topic /tasks/start --namespace k8s.io",
        "--address /run/containerd.sock publish --topic /tasks/exit --namespace k8s.io",
    ]
    event = Any.FromString((tmp_path / "stdin").read_bytes())
    assert event.type_url == "containerd.events.TaskExit"
    assert TaskExit.FromString(event.value).pid == 7


def test_binary_that_fails_is_tried_again(tmp_path: Path) -> None:
    path = binary(tmp_path, f"mkdir {tmp_path}/first && exit 1; cat > {tmp_path}/stdin")
    publish_by_binary(path, TaskExit(pid=7))
    assert (tmp_path / "stdin").exists()


def test_binary_error_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "RETRY_TIMEOUT", 0.0)
    publish_by_binary(binary(tmp_path, "echo no daemon >&2; exit 3"), TaskExit())
    assert "publish ended with 3: no daemon" in caplog.text


def test_binary_that_hangs_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "RETRY_TIMEOUT", 0.0)
    monkeypatch.setattr(events, "ATTEMPT_TIMEOUT", 0.1)
    publish_by_binary(binary(tmp_path, "exec sleep 60"), TaskExit())
    assert "did not end within 0.1 s" in caplog.text


def test_memory_publisher_keeps_copies() -> None:
    memory = MemoryPublisher()
    publisher: Publisher = memory
    event = TaskStart(pid=1)
    publisher.publish(event)
    event.pid = 2
    asyncio.run(publisher.close())
    assert memory.published == [("/tasks/start", TaskStart(pid=1))]
    assert memory.topics == ["/tasks/start"]
    assert memory.closed
