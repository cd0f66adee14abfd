"""Write ``dist/release``: what a release of the four distributions consists of.

    containerd-shim-NAME-v1-linux-ARCH.tar.gz    a binary, README and LICENSE
    *.whl                                        the distributions, for pip
    NAME.tar                                     the example images, OCI archives
    sbom.cdx.json                                what is in the binaries (CycloneDX)
    RELEASE_NOTES.md                             what the changelogs say of this version
    SHA256SUMS

The same sources give the same files. ``make release`` builds what is missing first.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from binary.interpreter import Interpreter, chosen_interpreter

REPOSITORY: Final = Path(__file__).parents[2]
DISTRIBUTIONS: Final = (
    ("shared", "containerd-shimkit"),
    ("containerd-shim-spin-v1", "Spin shim"),
    ("containerd-shim-slight-v1", "Slight shim"),
    ("containerd-shim-wws-v1", "Wasm Workers Server shim"),
)
SHIMS: Final = tuple(directory for directory, _ in DISTRIBUTIONS[1:])

_EPOCH: Final = 315532800  # 1980-01-01, the first day that zip files know
_SECTION: Final = re.compile(r"^## \[(?P<name>[^\]]+)\].*?\n(?P<text>.*?)(?=^## |\Z)", re.M | re.S)


class ReleaseError(Exception):
    """Something that a release needs is not there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a release; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist" / "release")
    output = parser.parse_args(arguments).output
    try:
        write_release(output)
    except (ReleaseError, subprocess.CalledProcessError) as exc:
        print(f"release: {exc}", file=sys.stderr)
        return 1
    for path in sorted(output.iterdir()):
        print(f"{path.stat().st_size:>12,}  {path.name}")
    return 0


def write_release(output: Path) -> None:
    """Write all files, whatever was in the directory before. Raises ReleaseError."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    dist = REPOSITORY / "dist"
    for shim in SHIMS:
        write_archive(
            output / f"{shim}-linux-{platform.machine()}.tar.gz",
            [
                (_need(dist / shim, "make build"), shim, 0o755),
                (REPOSITORY / shim / "README.md", "README.md", 0o644),
                (REPOSITORY / "LICENSE", "LICENSE", 0o644),
            ],
        )
    images = sorted((dist / "images").glob("*.tar"))
    if not images:
        raise ReleaseError("there are no images: make images")
    for image in images:
        shutil.copy(image, output)
    write_wheels(output)
    version = version_of(REPOSITORY / "shared")
    (output / "sbom.cdx.json").write_text(json.dumps(bill_of_materials(version), indent=1) + "\n")
    (output / "RELEASE_NOTES.md").write_text(release_notes(version))
    (output / "SHA256SUMS").write_text(checksums(output))


def _need(path: Path, command: str) -> Path:
    if not path.exists():
        raise ReleaseError(f"{path} is not there: {command}")
    return path


def write_archive(target: Path, files: Iterable[tuple[Path, str, int]]) -> None:
    """Write a tar file in gzip, the same for the same contents. files: path, name, mode."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, name, mode in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = path.stat().st_size, mode, _EPOCH
            with path.open("rb") as file:
                archive.addfile(entry, file)
    target.write_bytes(gzip.compress(packed.getvalue(), mtime=0))


def write_wheels(output: Path) -> None:
    """Build a wheel of each distribution."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(_EPOCH)}
    ignore = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "tests")
    # Of copies: what is built from a directory is written into it, and found the next time.
    with tempfile.TemporaryDirectory(prefix="release-") as directory:
        for name, _ in DISTRIBUTIONS:
            shutil.copytree(REPOSITORY / name, Path(directory, name), ignore=ignore)
        sources = [str(Path(directory, name)) for name, _ in DISTRIBUTIONS]
        subprocess.run(
            [*command, "--wheel-dir", str(output), *sources], check=True, env=environment
        )


def version_of(directory: Path) -> str:
    """Return the version of a distribution."""
    version: str = tomllib.loads((directory / "pyproject.toml").read_text())["project"]["version"]
    return version


def bill_of_materials(version: str) -> dict[str, Any]:
    """Return what is in the binaries, as CycloneDX: wheels by their lock, the interpreter."""
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "--output-reproducible"]
    lock = REPOSITORY / "requirements.lock"
    done = subprocess.run([*command, str(lock)], check=True, capture_output=True, text=True)
    bill: dict[str, Any] = json.loads(done.stdout)
    bill.setdefault("metadata", {})["component"] = {
        "type": "application",
        "name": "containerd-wasm-shims",
        "version": version,
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    bill["components"] = [_interpreter(chosen_interpreter()), *bill.get("components", [])]
    return bill


def _interpreter(interpreter: Interpreter) -> dict[str, Any]:
    return {
        "type": "application",
        "name": "python",
        "version": interpreter.version,
        "licenses": [{"license": {"id": "PSF-2.0"}}],
        "hashes": [{"alg": "SHA-256", "content": sha256(interpreter.executable)}],
    }


def release_notes(version: str) -> str:
    """Return what the changelogs say of a version, or of what is not released yet."""
    parts = [f"# containerd-wasm-shims {version}\n"]
    repository = ((".", "All of it"), *DISTRIBUTIONS)
    for directory, name in repository:
        text = section(REPOSITORY / directory / "CHANGELOG.md", version)
        if text:
            parts.append(f"## {name}\n\n{text.replace(chr(10) + '### ', chr(10) + '#### ')}\n")
    return "\n".join(parts)


def section(changelog: Path, version: str) -> str:
    """Return a changelog's section of a version; that of Unreleased if it has none."""
    found = {
        each["name"]: each["text"].strip() for each in _SECTION.finditer(changelog.read_text())
    }
    text = found.get(version, found.get("Unreleased", ""))
    return f"#{text}" if text.startswith("### ") else text


def checksums(directory: Path) -> str:
    """Return a line for each file, as ``sha256sum --check`` reads them."""
    paths = sorted(path for path in directory.iterdir() if path.name != "SHA256SUMS")
    return "".join(f"{sha256(path)}  {path.name}\n" for path in paths)


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
