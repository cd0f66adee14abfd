"""Write ``dist/images/NAME.tar`` for directories ``images/NAME``: what ``make images`` runs.

With ``--wasi`` they are for the platform ``wasi/wasm``, else for Linux on this machine.

The image of a directory in another, ``images/NAME/OTHER``, is ``NAME-OTHER``. A directory holds an
``image.toml``::

    reference = "docker.io/library/wasmtest_NAME:latest"   # this is the default
    entrypoint = ["/"]
    env = ["NAME=value"]                                   # none by default
    files = [{ source = "hello.wasm", path = "app/hello.wasm" }]

``source`` is relative to the directory, ``path`` to the image's root.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from containerd_shimkit.errors import ManifestError, MissingFileError, ShimError
from containerd_shimkit.oci.archive import ImageFile, write_image_archive

REPOSITORY = Path(__file__).resolve().parents[2]


def find_images(images: Path) -> dict[str, Path]:
    """Return the directories of all images, by the images' names."""
    found = (manifest.parent for manifest in sorted(images.glob("**/image.toml")))
    return {"-".join(directory.relative_to(images).parts): directory for directory in found}


def build_image(directory: Path, output: Path, name: str, *, wasi: bool = False) -> Path:
    """Write the archive of the image in ``directory`` into ``output``; return its path.

    Raises ManifestError or MissingFileError, naming the file.
    """
    manifest = directory / "image.toml"
    try:
        settings = tomllib.loads(manifest.read_text())
        sources = [(file["source"], file["path"]) for file in settings["files"]]
        entrypoint = settings["entrypoint"]
    except OSError as exc:
        raise MissingFileError(f"{manifest}: {exc.strerror}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ManifestError(f"{manifest}: {exc}") from exc
    except KeyError as exc:
        raise ManifestError(f"{manifest}: field {exc} is required") from exc
    archive = output / f"{name}.tar"
    write_image_archive(
        archive,
        settings.get("reference", f"docker.io/library/wasmtest_{name}:latest"),
        [ImageFile(path, _read(directory / source)) for source, path in sources],
        entrypoint=entrypoint,
        env=settings.get("env", ()),
        os_="wasi" if wasi else "linux",
        architecture="wasm" if wasi else None,
    )
    return archive


def _read(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as exc:
        raise MissingFileError(f"{source}: {exc.strerror}") from exc


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write OCI image archives, without Docker.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all images if none is named")
    parser.add_argument("--images", type=Path, default=REPOSITORY / "images")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist" / "images")
    parser.add_argument("--wasi", action="store_true", help="for wasi/wasm, not for Linux")
    options = parser.parse_args(arguments)
    images = find_images(options.images)
    for name in options.names or images:
        try:
            directory = images.get(name, options.images / name)
            archive = build_image(directory, options.output, name, wasi=options.wasi)
        except ShimError as exc:
            print(f"build_images: {exc}", file=sys.stderr)
            return int(exc.exit_code)
        print(f"{archive}  {archive.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
