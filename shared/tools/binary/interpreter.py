"""The Python that goes into the binaries: a pinned one, or the one of ``BUNDLED_PYTHON``.

The pinned one is CPython as python-build-standalone builds it: optimised by profile and at link
time, against an old C library, with nearly all extension modules inside. It comes by way of Go's
module proxy, as the data of github.com/kluctl/go-embed-python.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from binary.places import DOWNLOADS, MACHINE, BuildError, digest_of, run

MODULE: Final = "github.com/kluctl/go-embed-python"
VERSION: Final = "v0.0.0-3.14.6-20260610-1"
SHA256: Final = "fa0d4ee2e90380a416d767e98ba500ce38d12f221eeb7af10cbe01fede77ee3a"
_PROXY: Final = "https://proxy.golang.org"
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_SYMLINK: Final = 1 << 27  # Go's os.ModeSymlink
_TIMEOUT_SECONDS: Final = 60.0
_DESCRIBE: Final = (
    "import json, sys, sysconfig;"
    "print(json.dumps([sysconfig.get_path('stdlib'), sysconfig.get_path('platstdlib'),"
    " '%d.%d' % sys.version_info[:2], sys.version]))"
)


@dataclass(frozen=True)
class Interpreter:
    """A Python to take apart."""

    executable: Path
    libraries: tuple[Path, ...]
    """Directories of its standard library; what comes first goes first."""
    version: str
    """``3.14``."""
    digest: str
    """Stands for its contents."""
    licenses: tuple[Path, ...] = ()


def chosen_interpreter() -> Interpreter:
    """Return the Python of ``BUNDLED_PYTHON``, or else the pinned one. Raises BuildError."""
    if chosen := os.environ.get("BUNDLED_PYTHON"):
        return installed_interpreter(Path(chosen))
    return pinned_interpreter()


def installed_interpreter(executable: Path) -> Interpreter:
    """Describe a Python of this machine. Raises BuildError."""
    stdlib, platform_library, version, full = json.loads(run([executable, "-IS", "-c", _DESCRIBE]))
    base = run([executable, "-ISc", "import sys; print(sys._base_executable or sys.executable)"])
    resolved = Path(base.strip()).resolve()
    libraries = tuple(dict.fromkeys((Path(stdlib), Path(platform_library))))
    return Interpreter(resolved, libraries, version, digest_of(full, [resolved]))


def pinned_interpreter() -> Interpreter:
    """Return the pinned Python for this machine, fetched at first. Raises BuildError."""
    if MACHINE not in _MACHINES:
        raise BuildError(f"no pinned Python for {MACHINE}: set BUNDLED_PYTHON to one")
    version = VERSION.split("-")[1].rpartition(".")[0]
    home = DOWNLOADS / f"python-{VERSION}-{MACHINE}"
    if not home.is_dir():
        _fetch(home)
    library = home / "lib" / f"python{version}"
    licenses = tuple(library.glob("LICENSE*"))
    return Interpreter(
        home / "bin" / f"python{version}", (library,), version, SHA256 + MACHINE, licenses
    )


def _fetch(home: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    with _download() as archive, tempfile.TemporaryDirectory(dir=home.parent) as directory:
        try:
            _extract(archive, Path(directory, "python"))
        except (KeyError, zipfile.BadZipFile, ValueError) as exc:
            raise BuildError(f"the Python that was fetched cannot be unpacked: {exc}") from exc
        if not home.is_dir():
            Path(directory, "python").rename(home)


@contextmanager
def _download() -> Iterator[Path]:
    """Yield the module's zip, whose sha256 is the pinned one."""
    proxy = os.environ.get("GOPROXY", "").replace("|", ",").split(",")[0]
    base = proxy if proxy.startswith(("http://", "https://")) else _PROXY
    url = f"{base.rstrip('/')}/{MODULE}/@v/{VERSION}.zip"
    with tempfile.NamedTemporaryFile(dir=DOWNLOADS, suffix=".zip") as file:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
                shutil.copyfileobj(response, file, 1 << 20)
        except (OSError, urllib.error.URLError) as exc:
            raise BuildError(
                f"cannot fetch the Python to bundle, 109 MB from {url}: {exc}. With a network "
                "once it is kept in .cache; without one, BUNDLED_PYTHON=/path/to/python3 bundles "
                "another"
            ) from exc
        file.flush()
        with open(file.name, "rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        if digest != SHA256:
            raise BuildError(f"{url} has the sha256 {digest}, which is not the pinned one")
        yield Path(file.name)


def _extract(path: Path, home: Path) -> None:
    """Write the tree for this machine; large files are gzipped one by one."""
    prefix = f"{MODULE}@{VERSION}/python/internal/data/linux-{_MACHINES[MACHINE]}"
    with zipfile.ZipFile(path) as archive:
        for entry in json.loads(archive.read(f"{prefix}/files.json"))["files"]:
            target = home / entry["name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if entry["perm"] & _SYMLINK:
                target.symlink_to(entry["symlink"])
            elif entry.get("compressed"):
                data = archive.read(f"{prefix}/{entry['name']}.gz")
                target.write_bytes(gzip.decompress(data))
                target.chmod(entry["perm"] & 0o777 | 0o200)
            elif f"{prefix}/{entry['name']}" in archive.NameToInfo:
                target.write_bytes(archive.read(f"{prefix}/{entry['name']}"))
                target.chmod(entry["perm"] & 0o777 | 0o200)
            else:
                target.mkdir(exist_ok=True)
