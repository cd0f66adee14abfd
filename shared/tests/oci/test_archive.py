from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.errors import InvalidArgumentError
from containerd_shimkit.oci.archive import (
    ImageFile,
    machine_architecture,
    tar_files,
    write_image_archive,
)

REFERENCE = "docker.io/library/probe:v1"
FILES = (
    ImageFile("static/deep/page.txt", b"a page\n"),
    ImageFile("bin/tool", b"\x7fELF", mode=0o755),
    ImageFile("app.toml", b"name = 'probe'\n"),
)


def contents(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = (member for member in tar if member.isfile())
        return {m.name: file.read() for m in files if (file := tar.extractfile(m))}


class Image:
    """An archive taken apart: every blob is reached by its descriptor and checked against it."""

    def __init__(self, path: Path) -> None:
        self.files = contents(path.read_bytes())
        self.index = json.loads(self.files["index.json"])
        self.described = self.index["manifests"][0]
        self.manifest = json.loads(self.blob(self.described))
        self.config = json.loads(self.blob(self.manifest["config"]))
        self.layer = gzip.decompress(self.blob(self.manifest["layers"][0]))

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        algorithm, _, digest = descriptor["digest"].partition(":")
        blob = self.files[f"blobs/{algorithm}/{digest}"]
        assert hashlib.new(algorithm, blob).hexdigest() == digest
        assert len(blob) == descriptor["size"]
        return blob


@pytest.fixture
def image(tmp_path: Path) -> Image:
    path = tmp_path / "probe.tar"
    write_image_archive(
        path, REFERENCE, FILES, entrypoint=["/bin/tool"], env=["A=1"], labels={"x": "y"}
    )
    return Image(path)


def test_every_blob_has_the_digest_and_size_of_its_descriptor(image: Image) -> None:
    digests = {name for name in image.files if name.startswith("blobs/")}
    assert len(digests) == 3  # that they are right was checked on the way


def test_layout_version(image: Image) -> None:
    assert json.loads(image.files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}


def test_index_names_the_image(image: Image) -> None:
    assert image.described["annotations"] == {
        "io.containerd.image.name": REFERENCE,
        "org.opencontainers.image.ref.name": "v1",
    }


def test_docker_finds_the_same_blobs(image: Image) -> None:
    """What ``docker load`` before 25 reads; docker image spec 1.2."""
    (found,) = json.loads(image.files["manifest.json"])
    assert found["RepoTags"] == [REFERENCE]
    assert json.loads(image.files[found["Config"]]) == image.config
    (layer,) = found["Layers"]
    assert gzip.decompress(image.files[layer]) == image.layer


def test_config_holds_what_was_asked_for(image: Image) -> None:
    assert image.config["config"] == {
        "Entrypoint": ["/bin/tool"],
        "Env": ["A=1"],
        "WorkingDir": "/",
        "Labels": {"x": "y"},
    }
    assert image.config["architecture"] == machine_architecture()
    assert image.described["platform"] == {"architecture": machine_architecture(), "os": "linux"}


def test_diff_id_is_of_the_uncompressed_layer(image: Image) -> None:
    (diff_id,) = image.config["rootfs"]["diff_ids"]
    assert diff_id == f"sha256:{hashlib.sha256(image.layer).hexdigest()}"


def test_layer_holds_directories_before_their_files(image: Image) -> None:
    with tarfile.open(fileobj=io.BytesIO(image.layer)) as tar:
        members = [(m.name, m.isdir(), oct(m.mode)) for m in tar]
    assert members == [
        ("app.toml", False, "0o644"),
        ("bin", True, "0o755"),
        ("bin/tool", False, "0o755"),
        ("static", True, "0o755"),
        ("static/deep", True, "0o755"),
        ("static/deep/page.txt", False, "0o644"),
    ]


def test_layer_belongs_to_root_and_has_no_time(image: Image) -> None:
    with tarfile.open(fileobj=io.BytesIO(image.layer)) as tar:
        assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in tar} == {(0, 0, "", "", 0)}


def test_archive_does_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    paths = [tmp_path / "one.tar", tmp_path / "two.tar"]
    for path, files in zip(paths, (FILES, FILES[::-1]), strict=True):
        write_image_archive(path, REFERENCE, files, entrypoint=["/"])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == paths


def test_returned_digest_is_of_the_manifest(tmp_path: Path) -> None:
    digest = write_image_archive(tmp_path / "a.tar", REFERENCE, FILES, entrypoint=["/"])
    assert Image(tmp_path / "a.tar").described["digest"] == digest


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "", "a\0b"], ids=repr
)
def test_path_that_is_not_plain_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="image path"):
        tar_files([ImageFile(path, b"")])


def test_path_given_twice_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="'a' is given twice"):
        tar_files([ImageFile("a", b"1"), ImageFile("a", b"1")])


def test_file_that_is_also_a_directory_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="'a' is both"):
        tar_files([ImageFile("a", b""), ImageFile("a/b", b"")])


@pytest.mark.parametrize("reference", ["hello", "localhost:5000/hello", ":latest", "hello:"])
def test_reference_without_tag_is_refused(tmp_path: Path, reference: str) -> None:
    with pytest.raises(InvalidArgumentError, match="has no tag"):
        write_image_archive(tmp_path / "a.tar", reference, FILES, entrypoint=["/"])
