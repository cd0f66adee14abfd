"""Finding modules in images: where they may be, and images that mean harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from containerd_shimkit.errors import InvalidArgumentError, NotFoundError
from containerd_shimkit.oci import modules
from containerd_shimkit.oci.archive import (
    ImageFile,
    machine_architecture,
    tar_files,
    write_image_archive,
)
from containerd_shimkit.oci.modules import WasmFile, find_modules, open_layout

WASM = b"\0asm\1\0\0\0"
OTHER = WASM + b"\0\2\1x"


class Blobs:
    """An image of blobs in memory."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.root = ""

    def add(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return digest

    def add_json(self, value: object) -> str:
        self.root = self.add(json.dumps(value).encode())
        return self.root

    def roots(self) -> list[str]:
        return [self.root]

    def open(self, digest: str) -> IO[bytes]:
        if digest not in self.blobs:
            raise NotFoundError(digest)
        return io.BytesIO(self.blobs[digest])


def image(*layers: bytes) -> Blobs:
    blobs = Blobs()
    blobs.add_json({"layers": [{"digest": blobs.add(layer)} for layer in layers]})
    return blobs


def found(blobs: Blobs) -> dict[str, bytes]:
    return {module.path: module.data for module in find_modules(blobs)}


TAR = tar_files([ImageFile("app/one.wasm", WASM), ImageFile("text", b"\0as"), ImageFile("empty")])


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_modules_are_found_by_their_contents(pack: Callable[[bytes], bytes]) -> None:
    other = tar_files([ImageFile("no-suffix", OTHER), ImageFile("fake.wasm", b"text")])
    assert found(image(pack(TAR), pack(other))) == {"app/one.wasm": WASM, "no-suffix": OTHER}


def test_layer_in_zstd() -> None:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        # A frame's magic and nothing after it: what is said is that this Python cannot.
        with pytest.raises(InvalidArgumentError, match=r"zstd: Python reads these from 3\.14 on"):
            found(image(b"\x28\xb5\x2f\xfd" + bytes(600)))
        return
    assert found(image(zstd.compress(TAR))) == {"app/one.wasm": WASM}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_layer_that_is_a_module(pack: Callable[[bytes], bytes]) -> None:
    blobs = image(pack(WASM))
    ((path, data),) = found(blobs).items()
    assert path in blobs.blobs
    assert data == WASM


def test_other_layers_are_left_alone() -> None:
    assert found(image(b"", b"\x7fELF" + bytes(1000), bytes(1024), b"{}", TAR[:100])) == {}


@pytest.mark.parametrize(
    ("platform", "wanted"),
    [
        (None, True),
        ({"os": "linux", "architecture": machine_architecture()}, True),
        ({"os": "linux", "architecture": "s390x"}, False),
        ({"os": "wasi", "architecture": "wasm"}, True),
        ({"os": "wasip1", "architecture": "wasm"}, True),
        ({"os": "windows", "architecture": machine_architecture()}, False),
        ({"os": "unknown", "architecture": "unknown"}, False),
        ({}, False),
    ],
)
def test_platforms(platform: dict[str, str] | None, wanted: bool) -> None:
    blobs = image(TAR)
    entry: dict[str, Any] = {"digest": blobs.root}
    if platform is not None:
        entry["platform"] = platform
    blobs.add_json({"manifests": [entry]})
    assert bool(found(blobs)) is wanted


def test_manifest_of_an_index_that_was_not_pulled() -> None:
    blobs = image(TAR)
    blobs.add_json({"manifests": [{"digest": "sha256:" + "0" * 64}, {"digest": blobs.root}]})
    assert found(blobs) == {"app/one.wasm": WASM}


def test_image_that_is_not_there() -> None:
    blobs = Blobs()
    blobs.root = "sha256:" + "0" * 64
    with pytest.raises(NotFoundError):
        found(blobs)


def test_links_devices_and_sparse_files_are_left_alone() -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    files = [ImageFile(f"odd-{n}", kind=k, link="/etc/shadow") for n, k in enumerate(kinds)]
    assert found(image(tar_files([*files, ImageFile("a", WASM)]))) == {"a": WASM}


# Images that mean harm


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "is no object"),
        ({"layers": [{"digest": "sha256:../../../etc/shadow"}]}, "is no digest"),
        ({"layers": [{"digest": 7}]}, "is no digest"),
        ({"layers": [{}]}, "is no digest"),
        ({"manifests": [{"digest": "md5:abc"}]}, "is no digest"),
        ({"layers": 7, "manifests": "x"}, None),
        ({"layers": [7, None]}, None),
    ],
)
def test_odd_manifest(value: object, message: str | None) -> None:
    blobs = Blobs()
    blobs.add_json(value)
    if message is None:
        assert found(blobs) == {}
    else:
        with pytest.raises(InvalidArgumentError, match=message):
            found(blobs)


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_manifest_that_is_no_json(data: bytes) -> None:
    blobs = Blobs()
    blobs.root = blobs.add(data)
    with pytest.raises(InvalidArgumentError, match="is no JSON"):
        found(blobs)


def test_large_manifest() -> None:
    blobs = Blobs()
    blobs.root = blobs.add(b" " * (modules.MAX_MANIFEST_BYTES + 1))
    with pytest.raises(InvalidArgumentError, match="is larger than"):
        found(blobs)


def test_indexes_in_a_long_chain() -> None:
    blobs = image(TAR)
    for _ in range(10):
        blobs.add_json({"manifests": [{"digest": blobs.root}]})
    with pytest.raises(InvalidArgumentError, match="too deep"):
        found(blobs)


def test_many_layers() -> None:
    blobs = Blobs()
    layers = [{"digest": f"sha256:{n:064x}"} for n in range(modules.MAX_BLOBS + 1)]
    one = blobs.add_json({"layers": layers})
    blobs.add_json({"manifests": [{"digest": one}, {"digest": blobs.add_json({})}]})
    with pytest.raises(InvalidArgumentError, match="more than"):
        found(blobs)


def test_compression_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "MAX_UNPACKED_BYTES", 1 << 20)
    head = tarfile.TarInfo("bomb")
    head.size = 1 << 40
    bomb = gzip.compress(head.tobuf() + bytes(8 << 20))
    with pytest.raises(InvalidArgumentError, match="more than 1048576 bytes when unpacked"):
        found(image(bomb))


def test_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "MAX_FILES", 3)
    with pytest.raises(InvalidArgumentError, match="more than 3 files"):
        found(image(tar_files([ImageFile(str(n)) for n in range(4)])))


def test_many_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "MAX_MODULES", 3)
    with pytest.raises(InvalidArgumentError, match="more than 3 modules"):
        found(image(tar_files([ImageFile(str(n), WASM) for n in range(4)])))


def extended(kind: bytes, size: int, data: bytes = b"") -> bytes:
    """A header that says more of the member after it, or of all."""
    head = tarfile.TarInfo("@")
    head.type = kind
    head.size = size
    return head.tobuf() + data.ljust(-(-size // 512) * 512, b"\0")


KINDS = {
    "name": tarfile.GNUTYPE_LONGNAME,
    "link": tarfile.GNUTYPE_LONGLINK,
    "pax": tarfile.XHDTYPE,
    "solaris": tarfile.SOLARIS_XHDTYPE,
    "global": tarfile.XGLTYPE,
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("number", [1, 3])
def test_large_extended_headers(kind: bytes, number: int) -> None:
    size = 1500 * 1024 // number
    record = b"%d a=" % size
    record += b"x" * (size - len(record) - 1) + b"\n"
    layer = extended(kind, size, record) * number + TAR
    with pytest.raises(InvalidArgumentError, match="is damaged: extended headers of more than"):
        found(image(gzip.compress(layer)))


def test_many_global_headers() -> None:
    """They are kept to the end, also with members between them."""
    layers = [
        extended(tarfile.XGLTYPE, 300_000, b"300000 a%d=" % n + b"x" * 299_000)
        + tar_files([ImageFile("a")])[:512]
        for n in range(9)
    ]
    with pytest.raises(InvalidArgumentError, match="is damaged"):
        found(image(gzip.compress(b"".join(layers))))


def test_extended_headers_in_a_long_chain() -> None:
    layer = extended(tarfile.GNUTYPE_LONGNAME, 1, b"a") * 5000 + TAR
    with pytest.raises(InvalidArgumentError, match="is damaged"):
        found(image(gzip.compress(layer)))


def test_long_names_of_many_members() -> None:
    """Each has its own bound, not all together."""
    name = b"a" * 4000
    member = extended(tarfile.GNUTYPE_LONGNAME, len(name), name) + tarfile.TarInfo("a").tobuf()
    assert found(image(gzip.compress(member * 600 + TAR))) == {"app/one.wasm": WASM}


def test_list_of_a_sparse_file_without_end() -> None:
    head = bytearray(extended(tarfile.GNUTYPE_SPARSE, 0))
    head[482] = 1  # more of the list follows
    head[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(head))[0]  # type: ignore[attr-defined]
    more = bytearray(b"0000000001\0\0" * 42 + bytes(8))
    more[504] = 1
    with pytest.raises(InvalidArgumentError, match="is damaged: extended headers of more than"):
        found(image(gzip.compress(head + more * 3000)))


def test_list_of_a_sparse_file_in_pax_is_not_read() -> None:
    records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    head = tarfile.TarInfo("sparse")
    head.size = 512
    layer = extended(tarfile.XHDTYPE, len(records), records) + head.tobuf()
    layer += b"99999999999\n0\n0\n".ljust(512, b"\0")
    assert found(image(gzip.compress(layer + TAR))) == {"app/one.wasm": WASM}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("in_tar", [True, False])
def test_large_module(
    monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes], in_tar: bool
) -> None:
    monkeypatch.setattr(modules, "MAX_MODULE_BYTES", 1000)
    data = WASM + bytes(1000)
    with pytest.raises(InvalidArgumentError, match="is larger than 1000 bytes"):
        found(image(pack(tar_files([ImageFile("large", data)]) if in_tar else data)))


@pytest.mark.parametrize(
    "layer",
    [
        gzip.compress(TAR)[:-100],
        gzip.compress(TAR)[:60] + b"\xff" * 60,
        gzip.compress(TAR)[:-8] + bytes(8),
    ],
    ids=["short", "not-gzip", "wrong-sum"],
)
def test_damaged_layer(layer: bytes) -> None:
    """It is an error, never another one than this."""
    with pytest.raises(InvalidArgumentError, match="is damaged"):
        found(image(layer))


@pytest.mark.parametrize("layer", [TAR[:700], TAR[:1536] + b"\xff" * 512 + TAR[2048:]])
def test_damaged_tar_ends_there(layer: bytes) -> None:
    """containerd has unpacked it before, or refused it: no start depends on what is found here."""
    assert set(found(image(layer)).values()) <= {WASM}


# Layouts


@pytest.mark.parametrize("unpacked", [False, True])
def test_archive_and_directory(tmp_path: Path, unpacked: bool) -> None:
    path = tmp_path / "image.tar"
    write_image_archive(path, "docker.io/library/a:b", [ImageFile("a", WASM)], entrypoint=["/"])
    if unpacked:
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "layout", filter="data")
        path = tmp_path / "layout"
    with open_layout(path) as layout:
        assert list(find_modules(layout)) == [WasmFile("a", WASM)]


@pytest.mark.parametrize("content", [b"", b"text" * 500, zlib.compress(TAR)])
def test_file_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with (
        pytest.raises((InvalidArgumentError, NotFoundError), match=r"is no image|index\.json"),
        open_layout(tmp_path / "file") as layout,
    ):
        list(find_modules(layout))


@pytest.mark.parametrize("index", [b"{", b"[]"])
def test_layout_with_an_odd_index(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "index.json").write_bytes(index)
    with (
        pytest.raises(InvalidArgumentError, match=r"index\.json is no"),
        open_layout(tmp_path) as layout,
    ):
        list(find_modules(layout))


def test_archive_without_an_index(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(TAR)
    with (
        pytest.raises(NotFoundError, match=r"has no index\.json"),
        open_layout(tmp_path / "a.tar") as layout,
    ):
        list(find_modules(layout))
