"""The containerd shim that runs Spin apps."""

from __future__ import annotations

from containerd_shimkit.runtime import ShimKind

__version__ = "0.1.0"

KIND = ShimKind("spin", "containerd_shim_spin_v1.engine:SpinEngine", __version__)
