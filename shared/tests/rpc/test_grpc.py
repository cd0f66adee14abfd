"""The gRPC client: calls of a real containerd, and servers that are none."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from containerd_shimkit.errors import NotFoundError, Status, UnavailableError
from containerd_shimkit.images import ContainerdImage
from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.oci.modules import find_modules
from containerd_shimkit.proto.content_pb2 import ReadContentRequest, ReadContentResponse
from containerd_shimkit.rpc.grpc import GrpcClient, GrpcError
from containerd_shimkit.testing.containerd import Containerd

CONTENT = "containerd.services.content.v1.Content"
WASM = b"\0asm\1\0\0\0"
LARGE = WASM + random.Random(1).randbytes(10 << 20)
"""Longer than the window of HTTP/2 and than a message of containerd's, packed too."""

real = pytest.mark.containerd


@pytest.fixture(scope="module")
def image(shared_containerd: Containerd) -> str:
    name = "docker.io/library/modules:latest"
    archive = shared_containerd.directory / "image.tar"
    files = [ImageFile("small.wasm", WASM), ImageFile("large.wasm", LARGE)]
    write_image_archive(archive, name, files, entrypoint=["/"])
    shared_containerd.import_image(archive)
    archive.unlink()
    return name


@real
def test_image_is_read_from_containerd(shared_containerd: Containerd, image: str) -> None:
    blobs = ContainerdImage(shared_containerd.address, shared_containerd.namespace, image)
    assert {m.path: m.data for m in find_modules(blobs)} == {
        "small.wasm": WASM,
        "large.wasm": LARGE,
    }


@real
def test_image_that_is_not_there(shared_containerd: Containerd) -> None:
    with pytest.raises(NotFoundError, match="no image nothing in namespace other"):
        ContainerdImage(shared_containerd.address, "other", "nothing")


@real
def test_errors_have_status_and_message(shared_containerd: Containerd) -> None:
    metadata = {"containerd-namespace": shared_containerd.namespace}
    with GrpcClient(shared_containerd.address, metadata=metadata) as client:
        request = ReadContentRequest(digest="sha256:" + "0" * 64)
        with pytest.raises(GrpcError, match="not found") as caught:
            list(client.stream(CONTENT, "Read", request, ReadContentResponse))
        assert caught.value.code == Status.NOT_FOUND
        # The connection goes on.
        with pytest.raises(GrpcError, match="unknown method") as caught:
            client.unary(CONTENT, "Nothing", Empty(), Empty)
        assert caught.value.code == Status.UNIMPLEMENTED


@real
def test_namespace_is_needed(shared_containerd: Containerd) -> None:
    request = ReadContentRequest(digest="sha256:" + "0" * 64)
    with (
        GrpcClient(shared_containerd.address) as client,
        pytest.raises(GrpcError, match="namespace is required"),
    ):
        list(client.stream(CONTENT, "Read", request, ReadContentResponse))


# Without containerd


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no-socket: No such file or directory"):
        GrpcClient(str(tmp_path / "no-socket"))


@contextmanager
def serving(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[GrpcClient]:
    """A server that does ``serve`` with its one connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            with GrpcClient(str(path), seconds=0.5) as client:
                yield client
        finally:
            thread.join()


def read_all(connection: socket.socket) -> None:
    with suppress(OSError):
        while connection.recv(4096):
            pass


SETTINGS = bytes.fromhex("000000040000000000")
HEADERS = bytes.fromhex("000001010400000001") + b"\x88"  # :status 200
GOAWAY = bytes.fromhex("0000080700000000000000000000000000")
RESET = bytes.fromhex("00000403000000000100000002")


def data(content: bytes, flags: int = 0) -> bytes:
    return len(content).to_bytes(3, "big") + bytes([0, flags, 0, 0, 0, 1]) + content


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        pytest.param(b"", "timed out", id="silent"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", "timed out", id="http-1"),
        pytest.param(SETTINGS + GOAWAY, "ended the connection", id="goaway"),
        pytest.param(SETTINGS + HEADERS + RESET, "reset the call", id="reset"),
        pytest.param(SETTINGS + HEADERS + data(b"\1\0\0\0\0"), "compressed", id="compressed"),
        pytest.param(SETTINGS + HEADERS + data(b"\0\xff\0\0\0"), "bytes; at most", id="large"),
        pytest.param(SETTINGS + HEADERS + data(b"\0\0\0\0\5ab", 1), "ends in a", id="short"),
        pytest.param(SETTINGS + HEADERS + data(b"\0\0\0\0\1\xff"), "parsing", id="no-protobuf"),
        pytest.param(SETTINGS + HEADERS + data(b"", 1), "0 answers to Get, not one", id="none"),
    ],
)
def test_odd_server(tmp_path: Path, answer: bytes, message: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(answer)
        read_all(connection)

    with (
        serving(tmp_path / "socket", serve) as client,
        pytest.raises(UnavailableError, match=message),
    ):
        client.unary("service", "Get", Empty(), Empty)


def test_server_that_closes(tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(4096)

    with (
        serving(tmp_path / "socket", serve) as client,
        pytest.raises(UnavailableError, match=r"closed|reset|Broken pipe"),
    ):
        client.unary("service", "Get", Empty(), Empty)


class Timeouts:
    """A socket that notes with which timeouts it is read."""

    def __init__(self, real: socket.socket) -> None:
        self.real = real
        self.noted: list[float] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def settimeout(self, seconds: float) -> None:
        self.noted.append(seconds)
        self.real.settimeout(seconds)


def test_time_of_the_reader_is_not_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who compiles a module between two answers finds the server as patient as before."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    is_read = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(SETTINGS + HEADERS + data(b"\0\0\0\0\0"))
        is_read.wait(10)
        connection.sendall(data(b"\0\0\0\0\0", 1))
        read_all(connection)

    with serving(tmp_path / "socket", serve) as client:
        timeouts = Timeouts(client._socket)
        client._socket = timeouts  # type: ignore[assignment]
        answers = client.stream("service", "List", Empty(), Empty)
        next(answers)
        now += 1000
        is_read.set()
        assert len(list(answers)) == 1
    assert set(timeouts.noted) == {0.5}
