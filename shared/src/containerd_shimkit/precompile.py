"""The ``precompile`` command: have an image's modules compiled before its first start.

They are compiled by the process that a start would use, into the entries that a start looks up.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from containerd_shimkit.compiling import find_or_compile
from containerd_shimkit.errors import ModuleError, NotFoundError, ShimError
from containerd_shimkit.images import DEFAULT_ADDRESS, ContainerdImage
from containerd_shimkit.oci.modules import BlobSource, WasmFile, find_modules, open_layout
from containerd_shimkit.runtime import ShimKind, cache_directory, cache_max_bytes
from containerd_shimkit.wasm.cache import CompiledModuleCache

_NAMESPACES: Final = ("k8s.io", "default")
_ADDRESS_SPACE_BYTES: Final = 2 << 30  # ours; the compiler's process sets its own limit


def define_precompile_command(parser: argparse.ArgumentParser, kind: ShimKind) -> None:
    """Give ``parser`` the arguments that ``run_precompile_command`` takes."""
    own = " and of this shim itself" if kind.modules else ""
    parser.description = (
        f"Compile the WebAssembly modules of images{own}, so that their first start is as quick as "
        "any."
    )
    parser.add_argument(
        "images",
        nargs="*" if kind.modules else "+",
        metavar="IMAGE",
        help="name of an image in containerd, as `ctr images ls` shows it, or path of an OCI "
        "archive or layout",
    )
    parser.add_argument(
        "-namespace",
        "--namespace",
        metavar="TEXT",
        help=f"containerd namespace; by default that of {' and '.join(_NAMESPACES)} which has the "
        "image",
    )
    parser.add_argument(
        "-address",
        "--address",
        metavar="TEXT",
        default=os.environ.get("CONTAINERD_ADDRESS") or DEFAULT_ADDRESS,
        help="containerd's gRPC socket (%(default)s)",
    )


def run_precompile_command(options: argparse.Namespace, kind: ShimKind) -> int:
    """Compile all; return 1 if any image or module could not be, or an image has no module.

    The apps of a shim with modules of its own may do without any.
    """
    _limit_memory()
    cache = CompiledModuleCache(Path(cache_directory()), max_bytes=cache_max_bytes())
    good = True
    for path in map(Path, kind.own_modules()):
        module = WasmFile(path.name, path.read_bytes())
        good &= _compile(module, hashlib.sha256(module.data).hexdigest(), cache)
    for name in options.images:
        try:
            with _open_image(name, options.address, options.namespace) as image:
                good &= _precompile(name, image, cache, may_have_none=bool(kind.modules))
        except (ShimError, OSError, MemoryError) as exc:
            sys.stdout.flush()
            sys.stderr.write(f"{name}: {exc or 'it needs too much memory'}\n")
            good = False
    return 0 if good else 1


@contextmanager
def _open_image(name: str, address: str, namespace: str | None) -> Iterator[BlobSource]:
    """Raises NotFoundError and whatever else keeps the image from being read."""
    if Path(name).exists():
        with open_layout(Path(name)) as layout:
            yield layout
        return
    if name.startswith(("/", "./", "../")):
        raise NotFoundError("no such file")
    yield _containerd_image(name, address, [namespace] if namespace else list(_NAMESPACES))


def _containerd_image(name: str, address: str, namespaces: list[str]) -> ContainerdImage:
    for namespace in namespaces:
        with contextlib.suppress(NotFoundError):
            return ContainerdImage(address, namespace, name)
    where = " or ".join(namespaces)
    raise NotFoundError(f"no such image in namespace {where} of {address}, and no such file")


def _precompile(
    name: str, image: BlobSource, cache: CompiledModuleCache, *, may_have_none: bool
) -> bool:
    """Compile an image's modules and print a line for each; return whether all is well."""
    seen: set[bytes] = set()
    good = True
    for module in find_modules(image):
        digest = hashlib.sha256(module.data).digest()
        if digest not in seen:
            seen.add(digest)
            good &= _compile(module, digest.hex(), cache)
    if not seen and not may_have_none:
        sys.stderr.write(f"{name}: has no WebAssembly module for this machine\n")
    return good and (bool(seen) or may_have_none)


def _compile(module: WasmFile, digest: str, cache: CompiledModuleCache) -> bool:
    begin = time.monotonic()
    good = False
    try:
        compiled = find_or_compile(module.data, cache)
    except ModuleError as exc:
        how = f"refused: {exc}"
    else:
        os.close(compiled.descriptor)
        good = compiled.is_cached
        if not good:
            how = f"compiled, but cannot be kept in {cache.directory}"
        else:
            how = "already there" if compiled.was_cached else "compiled"
    seconds = time.monotonic() - begin
    path = module.path.encode("unicode_escape").decode()  # an image's names may hold anything
    sys.stdout.write(f"{path}  sha256:{digest}  {len(module.data)}  {how}  {seconds:.3f} s\n")
    sys.stdout.flush()
    return good


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = (
        _ADDRESS_SPACE_BYTES if hard == resource.RLIM_INFINITY else min(_ADDRESS_SPACE_BYTES, hard)
    )
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
