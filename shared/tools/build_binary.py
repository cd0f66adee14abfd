"""Build ``dist/containerd-shim-NAME-v1``: one executable file for a node that has the same Python.

The file is a zip that the interpreter runs directly: a few lines (``__main__.py``) and a payload
with the kit, the shim and every library of ``requirements.lock``. The first run unpacks the
payload into a directory named after the build; later runs start straight from there. The same
sources give the same bytes.

    python shared/tools/build_binary.py [--output dist] spin slight wws
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import io
import py_compile
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say

_MAIN = '''\
import os
import sys

BUILD_ID = "{build_id}"
ROOT = os.environ.get("CONTAINERD_WASM_SHIMS_ROOT") or "/var/lib/containerd-wasm-shims"
HOME = ROOT + "/" + BUILD_ID


def unpack():
    """Unpack the payload beside HOME and rename it: HOME is whole or not there."""
    import io
    import shutil
    import tempfile
    import zipfile

    os.makedirs(os.path.dirname(HOME), mode=0o755, exist_ok=True)
    directory = tempfile.mkdtemp(prefix=".new-", dir=os.path.dirname(HOME))
    try:
        with zipfile.ZipFile(sys.argv[0]) as archive:
            payload = io.BytesIO(archive.read("payload.zip"))
        with zipfile.ZipFile(payload) as archive:
            archive.extractall(directory)
        os.rename(directory, HOME)
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.isdir(HOME):  # somebody else was first
            raise


if not os.path.isdir(HOME):
    try:
        unpack()
    except OSError as exc:
        hint = "set CONTAINERD_WASM_SHIMS_ROOT to another place"
        sys.exit(f"{{sys.argv[0]}}: cannot unpack to {{HOME}}: {{exc}}; {{hint}}")
sys.path.insert(0, HOME)

from containerd_shimkit.launch import main
from containerd_shim_{name}_v1 import KIND

sys.exit(main(KIND, BUILD_ID))
'''


def main() -> None:
    """Build the shims named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist")
    parser.add_argument("names", nargs="+", metavar="NAME", help="spin, slight or wws")
    options = parser.parse_args()
    libraries = install_libraries()
    for name in options.names:
        path = options.output / f"containerd-shim-{name}-v1"
        build(name, libraries, path)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def install_libraries() -> Path:
    """Install the locked libraries once for each state of the lock file; return the directory."""
    lock = REPOSITORY / "requirements.lock"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(lock.read_bytes() + version.encode()).hexdigest()[:16]
    directory = REPOSITORY / "build" / f"libraries-{digest}"
    if not directory.is_dir():
        temporary = directory.with_suffix(".new")
        shutil.rmtree(temporary, ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--require-hashes",
            "--no-deps",
        ]
        command += ["--no-compile", "--only-binary", ":all:", "--target", str(temporary)]
        subprocess.run([*command, "--requirement", str(lock)], check=True)
        shutil.rmtree(temporary / "bin", ignore_errors=True)
        temporary.rename(directory)
    return directory


def build(name: str, libraries: Path, destination: Path) -> None:
    """Write one shim's executable."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=libraries.parent) as directory:
        payload = _payload(name, libraries, Path(directory, "stage"))
    template = _MAIN.format(build_id="{build_id}", name=name)
    build_id = hashlib.sha256(payload + template.encode()).hexdigest()[:16]
    code = _MAIN.format(build_id=build_id, name=name)
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = destination.with_suffix(".new")
    with open(temporary, "wb") as file:
        file.write(f"#!{interpreter()} -IS\n".encode())
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(_entry("__main__.py"), code)
            archive.writestr(_entry("payload.zip"), payload)
    temporary.chmod(0o755)
    temporary.rename(destination)


def _payload(name: str, libraries: Path, stage: Path) -> bytes:
    """Return the zip of everything the shim imports."""
    shutil.copytree(libraries, stage)
    ignore = shutil.ignore_patterns("__pycache__", "*.pyi", "*.proto", "testing")
    for source in ("shared/src", f"containerd-shim-{name}-v1/src"):
        for package in sorted((REPOSITORY / source).iterdir()):
            if (package / "__init__.py").exists():
                shutil.copytree(package, stage / package.name, ignore=ignore)
    compileall.compile_dir(
        stage,
        quiet=1,
        stripdir=str(stage),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    return zip_tree(stage)


def interpreter() -> Path:
    """Return the Python the shims run with: this one, outside of its virtual environment."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return (Path(sys.base_prefix) / "bin" / name).resolve()


def zip_tree(directory: Path) -> bytes:
    """Return a zip of the directory with the same bytes for the same contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                entry = _entry(str(path.relative_to(directory)))
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 6)
    return buffer.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o644 << 16
    return info


if __name__ == "__main__":
    main()
