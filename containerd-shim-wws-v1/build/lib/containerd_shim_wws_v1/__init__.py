"""The containerd shim for Wasm Workers Server apps. So far only its packaging is here."""

from __future__ import annotations

from containerd_shimkit.runtime import ShimKind

__version__ = "0.1.0"

KIND = ShimKind("wws", "", __version__)
