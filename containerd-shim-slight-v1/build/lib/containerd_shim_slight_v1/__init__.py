"""The containerd shim that runs SpiderLightning (Slight) apps."""

from __future__ import annotations

from containerd_shimkit.runtime import ShimKind

__version__ = "0.1.0"

KIND = ShimKind("slight", "containerd_shim_slight_v1.engine:SlightEngine", __version__)
