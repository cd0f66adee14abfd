"""The containerd shim that runs Wasm Workers Server apps."""

from __future__ import annotations

from containerd_shimkit.runtime import ShimKind

__version__ = "0.1.0"

KIND = ShimKind(
    "wws",
    "containerd_shim_wws_v1.engine:WwsEngine",
    __version__,
    modules="containerd_shim_wws_v1.engines",
)
