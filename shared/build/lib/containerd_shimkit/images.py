"""Images of a containerd: its image and content services, over gRPC."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, Final

from containerd_shimkit.errors import NotFoundError, Status
from containerd_shimkit.proto.content_pb2 import ReadContentRequest, ReadContentResponse
from containerd_shimkit.proto.images_pb2 import GetImageRequest, GetImageResponse
from containerd_shimkit.rpc.grpc import GrpcClient, GrpcError

DEFAULT_ADDRESS: Final = "/run/containerd/containerd.sock"
_NAMESPACE: Final = "containerd-namespace"  # containerd pkg/namespaces, the gRPC header


class ContainerdImage:
    """The blobs of one image; each is read over a connection of its own."""

    def __init__(self, address: str, namespace: str, name: str) -> None:
        """Raises NotFoundError if there is no such image, UnavailableError, GrpcError."""
        self._address = address
        self._metadata = {_NAMESPACE: namespace}
        with GrpcClient(address, metadata=self._metadata) as client:
            try:
                answer = client.unary(
                    "containerd.services.images.v1.Images",
                    "Get",
                    GetImageRequest(name=name),
                    GetImageResponse,
                )
            except GrpcError as exc:
                if exc.code == Status.NOT_FOUND:
                    raise NotFoundError(f"no image {name} in namespace {namespace}") from exc
                raise
        self._target = answer.image.target.digest

    def roots(self) -> list[str]:
        return [self._target]

    def open(self, digest: str) -> IO[bytes]:
        """Return a stream of the blob; a missing one is an error at the first read."""
        client = GrpcClient(self._address, metadata=self._metadata)
        return io.BufferedReader(_Content(client, digest), 1 << 20)


class _Content(io.RawIOBase):
    def __init__(self, client: GrpcClient, digest: str) -> None:
        super().__init__()
        self._client = client
        self._parts = self._receive(digest)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = part
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def close(self) -> None:
        self._client.close()
        super().close()

    def _receive(self, digest: str) -> Iterator[bytes]:
        try:
            for answer in self._client.stream(
                "containerd.services.content.v1.Content",
                "Read",
                ReadContentRequest(digest=digest),
                ReadContentResponse,
            ):
                yield answer.data
        except GrpcError as exc:
            if exc.code == Status.NOT_FOUND:
                # containerd keeps what an image's other platforms have only if it was asked to.
                raise NotFoundError(f"containerd has no content {digest}") from exc
            raise
