from __future__ import annotations

import asyncio
import inspect
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from containerd_shimkit import errors
from containerd_shimkit.errors import InvalidArgumentError, NotFoundError, Status, status_of
from containerd_shimkit.proto.task_pb2 import StateRequest, StateResponse
from containerd_shimkit.rpc import server as server_module
from containerd_shimkit.rpc.client import Client
from containerd_shimkit.rpc.connection import ClientConnection, ResponseReceived
from containerd_shimkit.rpc.errors import LocalProtocolError, RemoteError
from containerd_shimkit.rpc.frames import HEADER, MAX_PAYLOAD_BYTES, Frame, MessageType
from containerd_shimkit.rpc.frames import encode_frame as encode
from containerd_shimkit.rpc.server import Method, Server

SERVICE = "containerd.task.v2.Task"
Handler = Callable[[Any], Awaitable[Message]]


async def echo(request: StateRequest) -> StateResponse:
    return StateResponse(id=request.id)


async def sleep(request: StateRequest) -> StateResponse:
    await asyncio.sleep(60)
    return StateResponse()


def task(
    handler: Handler = echo, *, cancellable: bool = False
) -> Mapping[str, Mapping[str, Method]]:
    return {SERVICE: {"State": Method(StateRequest, handler, cancellable)}}


@asynccontextmanager
async def serving(
    path: Path, services: Mapping[str, Mapping[str, Method]], **options: Any
) -> AsyncIterator[Server]:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(16)
    server = Server(services, status_of=status_of, **options)
    await server.start(sock)
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Client]:
    client = await Client.connect(f"unix://{path}", 5)
    try:
        yield client
    finally:
        await client.close()


async def state(client: Client, task_id: str = "a", timeout: float | None = 5) -> StateResponse:
    request = StateRequest(id=task_id)
    return await client.call(SERVICE, "State", request, StateResponse, timeout=timeout)


async def raw(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(path))


async def raw_responses(reader: asyncio.StreamReader, count: int) -> list[tuple[int, bytes]]:
    found = []
    for _ in range(count):
        length, stream_id, kind, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
        assert kind == MessageType.RESPONSE
        found.append((stream_id, await reader.readexactly(length)))
    return found


def request_wire(stream_id: int, payload: bytes = b"", method: str = "State") -> bytes:
    connection = ClientConnection()
    for _ in range((stream_id + 1) // 2):
        _, wire = connection.send_request(SERVICE, method, payload)
    return wire


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Runs a coroutine on each of the loops a shim may use."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(main: Any) -> Any:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(asyncio.wait_for(main, 20))

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def test_call_is_answered(run: Callable[[Any], Any], path: Path) -> None:
    async def main() -> None:
        async with serving(path, task()), connected(path) as client:
            assert (await state(client, "pod-1")).id == "pod-1"

    run(main())


def test_calls_and_answers_are_logged_for_debugging(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`make bench` reads these lines."""
    caplog.set_level("DEBUG", server_module.__name__)

    async def main() -> None:
        async with serving(path, task()), connected(path) as client:
            await state(client)

    asyncio.run(main())
    assert caplog.messages == [f"{SERVICE}/State called", f"{SERVICE}/State answered"]


@pytest.mark.parametrize("prefix", ["", "unix://"])
def test_address_forms(prefix: str, path: Path) -> None:
    async def main() -> None:
        async with serving(path, task()):
            client = await Client.connect(f"{prefix}{path}", 5)
            await client.close()
            assert client.closed

    asyncio.run(main())


def test_relative_address_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="no absolute path"):
        asyncio.run(Client.connect("unix://run/s", 1))


def test_connect_without_server_fails(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(Client.connect(str(path), 1))


def test_calls_are_answered_out_of_order(run: Callable[[Any], Any], path: Path) -> None:
    """A ``Wait`` in flight holds up nobody."""

    async def main() -> None:
        release = asyncio.Event()
        finished: list[str] = []

        async def handler(request: StateRequest) -> StateResponse:
            if request.id == "slow":
                await release.wait()
            finished.append(request.id)
            return StateResponse(id=request.id)

        async with serving(path, task(handler)), connected(path) as client:
            slow = asyncio.create_task(state(client, "slow"))
            assert (await state(client, "fast")).id == "fast"
            release.set()
            assert (await slow).id == "slow"
            assert finished == ["fast", "slow"]

    run(main())


def test_thousand_concurrent_calls(run: Callable[[Any], Any], path: Path) -> None:
    async def main() -> None:
        async def handler(request: StateRequest) -> StateResponse:
            await asyncio.sleep(0)
            return StateResponse(id=request.id)

        async with serving(path, task(handler)), connected(path) as client:
            ids = [str(number) for number in range(1000)]
            answers = await asyncio.gather(*(state(client, task_id) for task_id in ids))
            assert [answer.id for answer in answers] == ids

    run(main())


def test_requests_begin_in_order(path: Path) -> None:
    async def main() -> None:
        begun: list[str] = []

        async def handler(request: StateRequest) -> StateResponse:
            begun.append(request.id)
            return StateResponse()

        async with serving(path, task(handler), max_in_flight=3), connected(path) as client:
            ids = [str(number) for number in range(50)]
            await asyncio.gather(*(state(client, task_id) for task_id in ids))
            assert begun == ids

    asyncio.run(main())


ERRORS = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, errors.ShimError) and error is not errors.SandboxError
]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        *((error("cannot do it"), error.status, "cannot do it") for error in ERRORS),
        (errors.SandboxError("mount /proc", "EPERM"), Status.UNKNOWN, "mount /proc: EPERM"),
        (OSError(2, "No such file"), Status.UNKNOWN, "[Errno 2] No such file"),
        (AssertionError(), Status.UNKNOWN, "AssertionError"),
        (NotFoundError("/a/\udcff"), Status.NOT_FOUND, "/a/\\udcff"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_error_reaches_the_caller(
    error: Exception, status: Status, message: str, path: Path
) -> None:
    async def main() -> None:
        async def handler(request: StateRequest) -> StateResponse:
            raise error

        async with serving(path, task(handler)), connected(path) as client:
            with pytest.raises(RemoteError) as caught:
                await state(client)
            assert (caught.value.status, caught.value.message) == (status, message)

    asyncio.run(main())


def test_handler_without_a_result_is_an_error(path: Path) -> None:
    """A bug of ours is an answer too, and no caller waits for ever."""

    async def main() -> None:
        async def handler(request: StateRequest) -> Any:
            return None

        async with serving(path, task(handler)), connected(path) as client:
            with pytest.raises(RemoteError, match="SerializeToString"):
                await state(client)

    asyncio.run(main())


def test_handler_that_cancels_itself_is_answered(path: Path) -> None:
    async def main() -> None:
        async def handler(request: StateRequest) -> StateResponse:
            raise asyncio.CancelledError

        async with serving(path, task(handler)), connected(path) as client:
            with pytest.raises(RemoteError) as caught:
                await state(client)
            assert caught.value.status is Status.CANCELLED

    asyncio.run(main())


@pytest.mark.parametrize(
    ("service", "method", "message"),
    [
        ("no.such.Service", "State", "service no.such.Service is not implemented"),
        (SERVICE, "Nothing", f"method {SERVICE}/Nothing is not implemented"),
    ],
)
def test_unknown_method(service: str, method: str, message: str, path: Path) -> None:
    async def main() -> None:
        async with serving(path, task()), connected(path) as client:
            with pytest.raises(RemoteError) as caught:
                await client.call(service, method, Empty(), Empty, timeout=5)
            assert (caught.value.status, caught.value.message) == (Status.UNIMPLEMENTED, message)

    asyncio.run(main())


def test_unparsable_payload(path: Path) -> None:
    async def main() -> None:
        async with serving(path, task()):
            reader, writer = await raw(path)
            writer.write(request_wire(1, payload=b"\xff"))
            [(_, response)] = await raw_responses(reader, 1)
            assert b"cannot parse the StateRequest" in response
            writer.close()

    asyncio.run(main())


def test_connection_survives_an_oversized_request(run: Callable[[Any], Any], path: Path) -> None:
    async def main() -> None:
        async with serving(path, task()):
            reader, writer = await raw(path)
            length = MAX_PAYLOAD_BYTES + 1
            writer.write(HEADER.pack(length, 1, MessageType.REQUEST, 0) + bytes(length))
            writer.write(request_wire(3))
            (first, refusal), (second, _) = await raw_responses(reader, 2)
            assert (first, second) == (1, 3)
            assert b"message length 4194305 exceeds 4194304 bytes" in refusal
            writer.close()

    run(main())


def test_too_long_request_is_not_sent(path: Path) -> None:
    async def main() -> None:
        async with serving(path, task()), connected(path) as client:
            with pytest.raises(LocalProtocolError):
                await state(client, "x" * MAX_PAYLOAD_BYTES)
            assert (await state(client)).id == "a"

    asyncio.run(main())


def test_too_long_response_is_an_error(path: Path) -> None:
    async def main() -> None:
        async def handler(request: StateRequest) -> StateResponse:
            return StateResponse(id="x" * MAX_PAYLOAD_BYTES)

        async with serving(path, task(handler)), connected(path) as client:
            with pytest.raises(RemoteError) as caught:
                await state(client)
            assert caught.value.status is Status.RESOURCE_EXHAUSTED

    asyncio.run(main())


@pytest.mark.parametrize("wire", [b"GET / HTTP/1.1\r\n\r\n", encode(Frame(2, 1, 0, b""))])
def test_protocol_error_closes_the_connection(wire: bytes, path: Path) -> None:
    async def main() -> None:
        async with serving(path, task()):
            reader, writer = await raw(path)
            writer.write(wire)
            assert await reader.read() == b""
            writer.close()

    asyncio.run(main())


@pytest.mark.parametrize("cancellable", [True, False])
def test_timeout_cancels_only_what_may_be_cancelled(
    cancellable: bool, run: Callable[[Any], Any], path: Path
) -> None:
    async def main() -> None:
        release = asyncio.Event()
        ends: asyncio.Queue[str] = asyncio.Queue()

        async def handler(request: StateRequest) -> StateResponse:
            try:
                await release.wait()
            except asyncio.CancelledError:
                ends.put_nowait("cancelled")
                raise
            ends.put_nowait("finished")
            return StateResponse()

        async with serving(path, task(handler, cancellable=cancellable)), connected(path) as client:
            with pytest.raises(RemoteError) as caught:
                await state(client, timeout=0.05)
            assert caught.value.status is Status.DEADLINE_EXCEEDED
            if not cancellable:
                release.set()
            assert await ends.get() == ("cancelled" if cancellable else "finished")

    run(main())


def test_server_enforces_the_timeout_too(path: Path) -> None:
    async def main() -> None:
        async with serving(path, task(sleep, cancellable=True)):
            reader, writer = await raw(path)
            connection = ClientConnection()
            for timeout_nano in (-1, 10_000_000):
                wire = connection.send_request(SERVICE, "State", b"", timeout_nano=timeout_nano)[1]
                writer.write(wire)
            answers: list[ResponseReceived] = []
            while len(answers) < 2:
                answers += connection.receive_data(await reader.read(4096))
            assert {answer.status for answer in answers} == {Status.DEADLINE_EXCEEDED}
            assert "not done within 0.01 s" in answers[1].message
            writer.close()

    asyncio.run(main())


@pytest.mark.parametrize("cancellable", [True, False])
def test_vanished_client_cancels_only_what_may_be_cancelled(
    cancellable: bool, run: Callable[[Any], Any], path: Path
) -> None:
    async def main() -> None:
        begun, release = asyncio.Event(), asyncio.Event()
        ends: asyncio.Queue[str] = asyncio.Queue()

        async def handler(request: StateRequest) -> StateResponse:
            begun.set()
            try:
                await release.wait()
            except asyncio.CancelledError:
                ends.put_nowait("cancelled")
                raise
            ends.put_nowait("finished")
            return StateResponse()

        async with serving(path, task(handler, cancellable=cancellable)):
            _, writer = await raw(path)
            writer.write(request_wire(1) + request_wire(3)[:7])
            await begun.wait()
            writer.transport.abort()
            if not cancellable:
                async with connected(path):  # the loop has seen the other connection go
                    release.set()
            assert await ends.get() == ("cancelled" if cancellable else "finished")

    run(main())


def test_lost_connection_fails_pending_calls(run: Callable[[Any], Any], path: Path) -> None:
    async def main() -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen(1)
        sock.setblocking(False)
        client, (peer, _) = await asyncio.gather(
            Client.connect(str(path), 5), asyncio.get_running_loop().sock_accept(sock)
        )
        calls = [asyncio.create_task(state(client)) for _ in range(3)]
        await asyncio.sleep(0)
        peer.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [ConnectionResetError] * 3
        with pytest.raises(ConnectionError, match="closed"):
            await state(client)
        await client.close()
        sock.close()

    run(main())


def test_call_fails_when_the_server_speaks_nonsense(path: Path) -> None:
    async def main() -> None:
        async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read()
            writer.close()

        server = await asyncio.start_unix_server(nonsense, str(path))
        async with connected(path) as client:
            with pytest.raises(ConnectionError, match="not a ttrpc frame"):
                await state(client)
        server.close()

    asyncio.run(main())


def test_in_flight_calls_are_bounded(run: Callable[[Any], Any], path: Path) -> None:
    async def main() -> None:
        running = 0
        most = 0

        async def handler(request: StateRequest) -> StateResponse:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1
            return StateResponse()

        async with serving(path, task(handler), max_in_flight=4), connected(path) as client:
            await asyncio.gather(*(state(client) for _ in range(100)))
        assert most == 4

    run(main())


def test_client_that_does_not_read_is_not_read_from(path: Path) -> None:
    """Answers that nobody takes do not pile up."""

    async def main() -> None:
        begun = 0

        async def handler(request: StateRequest) -> StateResponse:
            nonlocal begun
            begun += 1
            return StateResponse(id="x" * (1 << 20))

        async with serving(path, task(handler), max_in_flight=8):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(path))
            sock.setblocking(False)
            connection = ClientConnection()
            wire = b"".join(connection.send_request(SERVICE, "State", b"")[1] for _ in range(500))
            await asyncio.get_running_loop().sock_sendall(sock, wire)
            await asyncio.sleep(0.2)
            assert 1 <= begun <= 8
            sock.close()

    asyncio.run(main())


def test_foreign_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "peer_uid", lambda sock: 54321)

    async def main() -> None:
        async with serving(path, task()):
            reader, writer = await raw(path)
            assert await reader.read() == b""
            writer.close()

    asyncio.run(main())


def test_peer_uid_is_that_of_the_peer() -> None:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        assert server_module.peer_uid(left) == os.geteuid()


def test_close_waits_for_handlers_that_must_finish(run: Callable[[Any], Any], path: Path) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def handler(request: StateRequest) -> StateResponse:
            begun.set()
            await asyncio.sleep(0.05)
            return StateResponse(id="done")

        async with serving(path, task(handler)) as server, connected(path) as client:
            call = asyncio.create_task(state(client))
            await begun.wait()
            await server.close()
            assert (await call).id == "done"

    run(main())


def test_close_lets_the_client_be_first(run: Callable[[Any], Any], path: Path) -> None:
    """It is answered, and its connection stays open until it closes that itself."""

    async def main() -> None:
        async with serving(path, task()) as server, connected(path) as client:
            assert (await state(client)).id == "a"
            closing = asyncio.create_task(server.close(linger=30))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(closing), 0.1)
            assert not client.closed
            await client.close()
            await asyncio.wait_for(closing, 5)

    run(main())


def test_close_does_not_wait_for_a_client_for_ever(run: Callable[[Any], Any], path: Path) -> None:
    async def main() -> None:
        async with serving(path, task()) as server, connected(path) as client:
            assert (await state(client)).id == "a"
            await asyncio.wait_for(server.close(linger=0.05), 5)
            with pytest.raises(ConnectionError):
                await state(client)

    run(main())


def test_close_ends_waiting_handlers(run: Callable[[Any], Any], path: Path) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def handler(request: StateRequest) -> StateResponse:
            begun.set()
            await asyncio.sleep(60)
            return StateResponse()

        services = task(handler, cancellable=True)
        async with serving(path, services) as server, connected(path) as client:
            call = asyncio.create_task(state(client, timeout=None))
            await begun.wait()
            await server.close()
            with pytest.raises(RemoteError) as caught:
                await call
            assert caught.value.status is Status.CANCELLED

    run(main())


def test_nobody_is_served_after_close(path: Path) -> None:
    async def main() -> None:
        async with serving(path, task()) as server:
            await server.close()
            with pytest.raises(ConnectionRefusedError):
                await Client.connect(str(path), 1)

    asyncio.run(main())
