"""What kind of shim this is, and where on the node it keeps things."""

from __future__ import annotations

import os

DEFAULT_STATE = "/var/lib/containerd-wasm-shims"
DEFAULT_CACHE_MAX_BYTES = 1 << 30
DEFAULT_RUN = "/run/containerd-wasm-shims"


class ShimKind:
    """One of the shims, as the kit knows it."""

    def __init__(self, name: str, engine: str, version: str, modules: str = "") -> None:
        """name: ``spin``; engine: ``package.module:Class``.

        modules: the package that holds ``.wasm`` files which the shim itself brings along.
        """
        self.name = name
        self.engine = engine
        self.version = version
        self.modules = modules

    def import_engine(self) -> type:
        """Import the engine's module; return its class. Raises ImportError."""
        import importlib

        module, _, name = self.engine.partition(":")
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]

    def own_modules(self) -> list[str]:
        """Return the paths of the modules that the shim brings along."""
        if not self.modules:
            return []
        import importlib.util
        from pathlib import Path

        spec = importlib.util.find_spec(self.modules)
        places = (spec.submodule_search_locations if spec is not None else None) or ()
        return [str(path) for place in places for path in sorted(Path(place).glob("*.wasm"))]

    @property
    def binary(self) -> str:
        """The executable containerd looks for."""
        return f"containerd-shim-{self.name}-v1"

    @property
    def runtime(self) -> str:
        """The runtime type in containerd's configuration."""
        return f"io.containerd.{self.name}.v1"


_unpacked: list[str] = []


def set_state_directory(directory: str) -> None:
    """Say where this binary was unpacked to: elsewhere, if its usual place cannot be written."""
    _unpacked[:] = [directory]


def state_directory() -> str:
    """Return where a binary unpacks itself; survives a reboot."""
    if _unpacked:
        return _unpacked[0]
    return os.environ.get("CONTAINERD_WASM_SHIMS_ROOT") or DEFAULT_STATE


def cache_directory() -> str:
    """Return where compiled modules are kept."""
    return os.environ.get("CONTAINERD_WASM_SHIMS_CACHE") or f"{state_directory()}/cache"


def cache_max_bytes() -> int:
    """Return how large the cache of compiled modules may become.

    Whatever is no number counts as not set: no pod shall fail for it.
    """
    text = os.environ.get("CONTAINERD_WASM_SHIMS_CACHE_MAX_BYTES", "")
    return int(text) if text.isascii() and text.isdecimal() else DEFAULT_CACHE_MAX_BYTES


def run_directory() -> str:
    """Return where the zygote's socket is; need not survive a reboot."""
    return os.environ.get("CONTAINERD_WASM_SHIMS_RUN") or DEFAULT_RUN
