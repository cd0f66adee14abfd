"""Finding the WebAssembly modules of an image: in its layers' files, and layers that are modules.

What a blob is, its first bytes say, not its media type: a tar, such a one in gzip or zstd, or a
module. All of it is hostile input: sizes and numbers are bounded, damaged layers are errors, and
nothing is written anywhere.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

from containerd_shimkit.errors import InvalidArgumentError, NotFoundError
from containerd_shimkit.oci.archive import machine_architecture

MAX_MODULE_BYTES: Final = 256 << 20
MAX_MODULES: Final = 1000
MAX_MANIFEST_BYTES: Final = 4 << 20
MAX_BLOBS: Final = 1000
MAX_FILES: Final = 1_000_000
MAX_UNPACKED_BYTES: Final = 16 << 30
"""Of all layers of an image, unpacked; the larger ones among images for AI have as much."""

_MAX_EXTENDED_BYTES: Final = 1 << 20  # of a tar's member: long names, pax records
_MAX_DEPTH: Final = 4  # index of indexes
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_WASM_MAGIC: Final = b"\0asm"
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_TAR_MAGIC_AT: Final = 257  # "ustar"; source: POSIX pax, ustar interchange format
_HEAD_BYTES: Final = 512
_EXTENDED: Final = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
)

_DAMAGED: Final = (
    tarfile.TarError,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    OverflowError,
    RecursionError,  # tarfile recurses from an extended header to the next
)


class BlobSource(Protocol):
    """Where an image's blobs come from."""

    def roots(self) -> list[str]:
        """Return the digests of the manifests or indexes to begin with."""
        ...

    def open(self, digest: str) -> IO[bytes]:
        """Return a blob, to be read once and in order. Raises NotFoundError."""
        ...


@dataclass(frozen=True, slots=True)
class WasmFile:
    """A module of an image."""

    path: str
    """In its layer; of a layer that is a module, the layer's digest."""
    data: bytes


def find_modules(source: BlobSource) -> Iterator[WasmFile]:
    """Yield what begins as WebAssembly does, in the layers for this machine and for wasi.

    Raises InvalidArgumentError if the image is damaged or beyond a bound, NotFoundError if a part
    of it is not there.
    """
    budget = _Budget()
    for layer in _layers(source):
        with source.open(layer) as blob:
            try:
                for module in _modules_of(layer, blob, budget):
                    budget.count_module()
                    yield module
            except _DAMAGED as exc:
                raise InvalidArgumentError(f"layer {layer} is damaged: {exc}") from exc


class _Budget:
    """What an image may still cost."""

    def __init__(self) -> None:
        self.bytes = MAX_UNPACKED_BYTES
        self.files = MAX_FILES
        self.modules = MAX_MODULES

    def count_bytes(self, number: int) -> None:
        self.bytes -= number
        if self.bytes < 0:
            raise InvalidArgumentError(f"more than {MAX_UNPACKED_BYTES} bytes when unpacked")

    def count_file(self) -> None:
        self.files -= 1
        if self.files < 0:
            raise InvalidArgumentError(f"more than {MAX_FILES} files")

    def count_module(self) -> None:
        self.modules -= 1
        if self.modules < 0:
            raise InvalidArgumentError(f"more than {MAX_MODULES} modules")


# Manifests


def _layers(source: BlobSource) -> list[str]:
    """Return the digests of all layers that a container here could have, each once."""
    found: dict[str, None] = {}
    waiting = [(digest, 0) for digest in source.roots()]
    seen: set[str] = set()
    while waiting:
        digest, depth = waiting.pop(0)
        if digest in seen:
            continue
        seen.add(digest)
        if len(seen) + len(found) > MAX_BLOBS or depth > _MAX_DEPTH:
            raise InvalidArgumentError(f"more than {MAX_BLOBS} manifests and layers, or too deep")
        try:
            manifest = _read_manifest(source, digest)
        except NotFoundError:
            if depth == 0:
                raise
            continue  # of an index, a node has pulled what it runs
        for entry in _list(manifest, "manifests"):
            if _is_for_us(entry):
                waiting.append((_digest_of(entry), depth + 1))
        found.update(dict.fromkeys(_digest_of(entry) for entry in _list(manifest, "layers")))
    return list(found)


def _read_manifest(source: BlobSource, digest: str) -> dict[str, Any]:
    with source.open(digest) as blob:
        data = blob.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidArgumentError(f"manifest {digest} is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgumentError(f"manifest {digest} is no JSON") from exc
    if not isinstance(manifest, dict):
        raise InvalidArgumentError(f"manifest {digest} is no object")
    return manifest


def _list(manifest: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = manifest.get(name)
    entries = found if isinstance(found, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]


def _digest_of(entry: dict[str, Any]) -> str:
    digest = entry.get("digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise InvalidArgumentError(f"{digest!r} is no digest")
    return digest


def _is_for_us(entry: dict[str, Any]) -> bool:
    platform = entry.get("platform")
    if not isinstance(platform, dict):
        return True
    os_, architecture = platform.get("os"), platform.get("architecture")
    if os_ == "linux":
        return architecture in (machine_architecture(), "wasm")
    return isinstance(os_, str) and os_.startswith("wasi")  # wasip1, wasip2 too


# Layers


def _modules_of(digest: str, blob: IO[bytes], budget: _Budget) -> Iterator[WasmFile]:
    stream = _Counted(blob, budget)
    head = stream.peek(_HEAD_BYTES)
    if head.startswith(_GZIP_MAGIC):
        stream = _Counted(gzip.GzipFile(fileobj=stream, mode="rb"), budget)
    elif head.startswith(_ZSTD_MAGIC):
        stream = _Counted(_UnpackedZstd(stream), budget)
    head = stream.peek(_HEAD_BYTES)
    if head.startswith(_WASM_MAGIC):
        data = stream.read_at_most(MAX_MODULE_BYTES + 1)
        if len(data) > MAX_MODULE_BYTES:
            raise InvalidArgumentError(f"{digest} is larger than {MAX_MODULE_BYTES} bytes")
        yield WasmFile(digest, data)
    elif head[_TAR_MAGIC_AT:].startswith(b"ustar"):
        yield from _modules_of_tar(stream, budget)


def _modules_of_tar(stream: _Counted, budget: _Budget) -> Iterator[WasmFile]:
    with _Tar.open(fileobj=stream, mode="r|", errorlevel=2) as tar:
        for member in tar:
            budget.count_file()
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            if not member.isreg() or member.issparse() or member.size < len(_WASM_MAGIC):
                continue
            file = tar.extractfile(member)
            if file is None or file.read(len(_WASM_MAGIC)) != _WASM_MAGIC:
                continue
            if member.size > MAX_MODULE_BYTES:
                raise InvalidArgumentError(
                    f"{member.name!r} is larger than {MAX_MODULE_BYTES} bytes"
                )
            yield WasmFile(member.name, _WASM_MAGIC + file.read())


class _Member(tarfile.TarInfo):
    """A member of a tar whose extended headers are bounded: tarfile reads them into memory whole.

    tarfile's source says of these methods that subclasses may override them.
    """

    def _proc_member(self, tar: _Tar) -> tarfile.TarInfo:
        if self.type in _EXTENDED:
            tar.count_extended(self.size)
            if self.type == tarfile.XGLTYPE:
                tar.global_bytes += self.size
        else:
            tar.extended_bytes = tar.global_bytes
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]

    def _proc_sparse(self, tar: _Tar) -> tarfile.TarInfo:
        """Have the rest of the list of pieces bounded; it comes in blocks that say "more"."""
        stream = tar.fileobj
        tar.fileobj = _Blocks(stream, tar)  # type: ignore[assignment]
        try:
            return super()._proc_sparse(tar)  # type: ignore[misc,no-any-return]
        finally:
            tar.fileobj = stream

    def _proc_gnusparse_10(
        self, member: tarfile.TarInfo, pax_headers: dict[str, str], tar: _Tar
    ) -> None:
        """Leave the list of pieces unread, which is in the contents: nobody reads those."""
        member.sparse = []  # type: ignore[assignment]


class _Tar(tarfile.TarFile):
    tarinfo = _Member
    extended_bytes = 0
    """Of the headers since the last member, and of those for all members."""
    global_bytes = 0

    def count_extended(self, number: int) -> None:
        self.extended_bytes += number
        if number < 0 or self.extended_bytes > _MAX_EXTENDED_BYTES:
            raise tarfile.ReadError(f"extended headers of more than {_MAX_EXTENDED_BYTES} bytes")


class _Blocks:
    """Counts what is read of a tar's stream as an extended header."""

    def __init__(self, stream: Any, tar: _Tar) -> None:
        self._stream = stream
        self._tar = tar

    def read(self, size: int, /) -> bytes:
        self._tar.count_extended(size)
        return self._stream.read(size)  # type: ignore[no-any-return]

    def tell(self) -> int:
        return self._stream.tell()  # type: ignore[no-any-return]


class _UnpackedZstd:
    """What a stream in zstd unpacks to. A damaged one is a ValueError, as of other formats."""

    def __init__(self, stream: _Counted) -> None:
        try:
            from compression import zstd  # type: ignore[import-not-found,unused-ignore]
        except ImportError as exc:
            raise InvalidArgumentError("a layer in zstd: Python reads these from 3.14 on") from exc
        self._file = zstd.ZstdFile(stream)
        self._error = zstd.ZstdError  # of Exception alone

    def read(self, size: int, /) -> bytes:
        try:
            return self._file.read(size)  # type: ignore[no-any-return,unused-ignore]
        except self._error as exc:
            raise ValueError(str(exc)) from exc


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Counted(io.RawIOBase):
    """A stream that can be looked into and counts what is read."""

    def __init__(self, stream: _Readable, budget: _Budget) -> None:
        super().__init__()
        self._stream = stream
        self._budget = budget
        self._head = b""

    def readable(self) -> bool:
        return True

    def peek(self, size: int) -> bytes:
        """Return the first bytes, which are read again afterwards; call this first."""
        if not self._head:
            self._head = self.read_at_most(size)
        return self._head

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            raise io.UnsupportedOperation("read without a bound")
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        data = self._stream.read(size)
        self._budget.count_bytes(len(data))
        return data

    def read_at_most(self, size: int) -> bytes:
        """Return as much as there is."""
        parts = []
        while size > 0 and (data := self.read(min(size, 1 << 20))):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


# Archives and layouts


class LayoutDirectory:
    """An image layout (OCI image-spec, image-layout.md) in a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def roots(self) -> list[str]:
        return _index_roots(self._read, str(self._path))

    def open(self, digest: str) -> IO[bytes]:
        return self._read("blobs/" + digest.replace(":", "/"))

    def _read(self, name: str) -> IO[bytes]:
        try:
            return (self._path / name).open("rb")
        except OSError as exc:
            raise NotFoundError(f"{self._path / name}: {exc.strerror}") from exc


class LayoutArchive:
    """The same in a tar, as ``docker save``, ``ctr image export`` and buildx write it."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidArgumentError if it is no tar, OSError."""
        self._path = path
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._tar = _Tar.open(path, "r:")  # closed with us
            for number, member in enumerate(self._tar):
                if number > MAX_BLOBS * 4:
                    raise InvalidArgumentError(f"{path}: more than {MAX_BLOBS * 4} files")
                if member.isreg() and not member.issparse():
                    self._members[member.name.removeprefix("./")] = member
        except (tarfile.TarError, EOFError, ValueError, RecursionError) as exc:
            raise InvalidArgumentError(f"{path} is no image archive: {exc}") from exc

    def roots(self) -> list[str]:
        return _index_roots(self._read, str(self._path))

    def open(self, digest: str) -> IO[bytes]:
        return self._read("blobs/" + digest.replace(":", "/"))

    def close(self) -> None:
        self._tar.close()

    def _read(self, name: str) -> IO[bytes]:
        member = self._members.get(name)
        file = self._tar.extractfile(member) if member else None
        if file is None:
            raise NotFoundError(f"{self._path}: has no {name}")
        return file


def _index_roots(read: Any, name: str) -> list[str]:
    with read("index.json") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgumentError(f"{name}: index.json is no JSON") from exc
    if not isinstance(index, dict):
        raise InvalidArgumentError(f"{name}: index.json is no object")
    return [_digest_of(entry) for entry in _list(index, "manifests") if _is_for_us(entry)]


@contextmanager
def open_layout(path: Path) -> Iterator[BlobSource]:
    """Open an image layout, a directory or an archive. Raises InvalidArgumentError, OSError."""
    if path.is_dir():
        yield LayoutDirectory(path)
        return
    archive = LayoutArchive(path)
    try:
        yield archive
    finally:
        archive.close()
