"""Build ``dist/containerd-shim-NAME-v1``: one executable file that needs nothing of the node.

It is a static program, the launcher, with two payloads behind it: the runtime (the interpreter,
its library, wheels, shared libraries), the same in all shims, and the shim with the kit. The same
sources, and the same packages of Debian's, give the same bytes. docs/binary.md says more.

    python shared/tools/build_binary.py [--output dist] spin slight wws
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
from pathlib import Path

from binary import places
from binary.archive import compress, pack
from binary.interpreter import Interpreter, chosen_interpreter
from binary.launcher import compile_launcher, write_binary
from binary.places import BuildError, digest_of
from binary.runtime import LOADERS, Runtime, build_runtime, compile_tree, own_wheels
from binary.table import size_table

from containerd_shimkit.cli import version_text
from containerd_shimkit.runtime import ShimKind


def main() -> int:
    """Build the shims named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=places.REPOSITORY / "dist")
    parser.add_argument("--table", action="store_true", help="print what each byte is for")
    parser.add_argument("names", nargs="+", metavar="NAME", help="spin, slight or wws")
    options = parser.parse_args()
    try:
        interpreter = chosen_interpreter()
        runtime = build_runtime(interpreter)
        for name in options.names:
            path = options.output / f"containerd-shim-{name}-v1"
            build(name, interpreter, runtime, path)
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        if options.table:
            print(size_table(runtime, len(compile_launcher())))
    except BuildError as exc:
        print(f"build_binary: {exc}", file=sys.stderr)
        return 1
    return 0


def build(
    name: str,
    interpreter: Interpreter,
    runtime: Runtime,
    destination: Path,
    sources: Path = places.REPOSITORY,
) -> str:
    """Write one shim's executable; return its build id. sources: a working copy's root."""
    launcher = compile_launcher()
    archive = _package(name, interpreter, runtime, sources)
    build_id = digest_of(launcher, runtime.name, archive)
    packed = compress(archive, places.BUILD / f"{name}-{build_id}.zst")
    kind = kind_of(name)
    write_binary(
        destination,
        launcher,
        [
            ("runtime", runtime.name, runtime.packed, runtime.size),
            ("package", f"{name}-{build_id}", packed, len(archive)),
        ],
        {
            "shim": name,
            "build": build_id,
            "python": f"python{interpreter.version}",
            "loader": LOADERS[places.MACHINE],
        },
        version_text(kind, build_id),
    )
    return build_id


def kind_of(name: str) -> ShimKind:
    """Return what the shim's package says of itself."""
    kind = importlib.import_module(f"containerd_shim_{name}_v1").KIND
    assert isinstance(kind, ShimKind)
    return kind


def _package(name: str, interpreter: Interpreter, runtime: Runtime, sources: Path) -> bytes:
    """Return the archive of the kit, the shim, and what the launcher has Python execute."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyi", "*.proto", "py.typed", "testing")
    places.BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=places.BUILD) as directory:
        stage = Path(directory)
        for source in ("shared/src", f"containerd-shim-{name}-v1/src"):
            for package in sorted((sources / source).iterdir()):
                if (package / "__init__.py").exists():
                    shutil.copytree(package, stage / package.name, ignore=ignore)
        if (wheels := own_wheels(name, interpreter)) is not None:
            shutil.copytree(wheels, stage, dirs_exist_ok=True)
        main = (places.LAUNCHER / "main.py.in").read_text()
        (stage / "main.py").write_text(main.format(name=name))
        compile_tree(stage, interpreter)
        # Which runtime it needs: the launcher keeps that as long as this is there.
        (stage / "runtime").symlink_to(runtime.name)
        return pack(stage)


if __name__ == "__main__":
    sys.exit(main())
