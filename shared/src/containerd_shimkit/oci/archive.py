"""Writes OCI image archives: one layer, without a build tool or daemon, the same bytes every time.

An archive is a tar file with an image layout (OCI image-spec 1.0, image-layout.md). ``ctr image
import`` of containerd 1.6 and later reads it, and so do skopeo, buildah and Podman. For ``docker
load`` before 25 there is a ``manifest.json`` besides, as ``docker save`` has written since 1.10.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from containerd_shimkit.errors import InvalidArgumentError

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"

# uname -m -> GOARCH, where they differ
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}

_GZIP_FORMAT = 31  # wbits: a gzip header, without a time; source: zlib.h, deflateInit2


@dataclass(frozen=True)
class ImageFile:
    """One file of an image, owned by root."""

    path: str
    """Relative to the image's root: ``bin/httpd``."""
    data: bytes = b""
    mode: int = 0o644
    kind: bytes = tarfile.REGTYPE
    """Or another type of a tar member: ``tarfile.SYMTYPE``, ``tarfile.FIFOTYPE``."""
    link: str = ""
    """What a link leads to."""


def machine_architecture() -> str:
    """Return the architecture of this machine as images name it: ``amd64``, ``arm64``."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def write_image_archive(
    destination: Path,
    reference: str,
    files: Iterable[ImageFile],
    *,
    entrypoint: Sequence[str],
    env: Sequence[str] = (),
    architecture: str | None = None,
    os_: str = "linux",
    working_dir: str = "/",
    user: str = "",
    labels: Mapping[str, str] | None = None,
) -> str:
    """Write an image named ``reference`` with exactly ``files`` in it; return its manifest digest.

    reference: with a tag, ``docker.io/library/hello:latest``; an import takes the name from it.
    env: ``NAME=value`` each.  architecture: this machine's if None.
    Raises InvalidArgumentError, with the value, for a reference without a tag or a bad path.
    """
    tag = _tag_of(reference)
    architecture = architecture or machine_architecture()
    layer = tar_files(files)
    settings = {
        "Env": list(env),
        "Entrypoint": list(entrypoint),
        "WorkingDir": working_dir,
        **({"User": user} if user else {}),
        **({"Labels": dict(labels)} if labels else {}),
    }
    config = {
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture,
        "os": os_,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }

    blobs: list[bytes] = []

    def describe(blob: bytes, media_type: str) -> dict[str, Any]:
        blobs.append(blob)
        return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}

    described_config = describe(_json(config), CONFIG_TYPE)
    described_layer = describe(zlib.compress(layer, 9, _GZIP_FORMAT), LAYER_TYPE)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": described_config,
        "layers": [described_layer],
    }
    described = describe(_json(manifest), MANIFEST_TYPE)
    described["platform"] = {"architecture": architecture, "os": os_}
    described["annotations"] = {
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": tag,
    }
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [described]}

    for_docker = {
        "Config": _path_of(described_config["digest"]),
        "RepoTags": [reference],
        "Layers": [_path_of(described_layer["digest"])],
    }

    members = [
        ImageFile("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
        ImageFile("index.json", _json(index)),
        ImageFile("manifest.json", _json([for_docker])),
        *(ImageFile(_path_of(_digest(blob)), blob) for blob in blobs),
    ]
    destination.parent.mkdir(parents=True, exist_ok=True)
    unfinished = destination.with_name(destination.name + ".tmp")
    unfinished.write_bytes(tar_files(members))
    unfinished.replace(destination)
    return str(described["digest"])


def tar_files(files: Iterable[ImageFile]) -> bytes:
    """Return a tar of ``files`` and their directories: sorted, of root, from the year 1970.

    Raises InvalidArgumentError for a path that is absolute, leaves the root, comes twice, or is
    both a file and a directory.
    """
    by_path: dict[str, ImageFile] = {}
    for file in files:
        if by_path.setdefault(_checked(file.path), file) is not file:
            raise InvalidArgumentError(f"image path {file.path!r} is given twice")
    directories = {str(parent) for path in by_path for parent in PurePosixPath(path).parents} - {
        "."
    }
    if both := directories & by_path.keys():
        raise InvalidArgumentError(f"image path {min(both)!r} is both a file and a directory")

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        # In this order a directory comes before what is in it.
        for path in sorted(directories | by_path.keys()):
            member = tarfile.TarInfo(path)  # uid, gid and mtime are 0
            if path in directories:
                member.type = tarfile.DIRTYPE
                member.mode = 0o755
                tar.addfile(member)
            else:
                member.size = len(by_path[path].data)
                member.mode = by_path[path].mode
                member.type = by_path[path].kind
                member.linkname = by_path[path].link
                tar.addfile(member, io.BytesIO(by_path[path].data))
    return content.getvalue()


def _checked(path: str) -> str:
    parts = path.split("/")
    if path.startswith("/"):
        raise InvalidArgumentError(f"image path {path!r} is absolute")
    if "\0" in path or not {"", ".", ".."}.isdisjoint(parts):
        raise InvalidArgumentError(f"image path {path!r} has an empty, '.' or '..' part, or a NUL")
    return path


def _tag_of(reference: str) -> str:
    # A colon before the last slash belongs to a port.
    name, colon, tag = reference.rpartition(":")
    if not (name and colon and tag) or "/" in tag:
        raise InvalidArgumentError(f"image reference {reference!r} has no tag")
    return tag


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _path_of(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
