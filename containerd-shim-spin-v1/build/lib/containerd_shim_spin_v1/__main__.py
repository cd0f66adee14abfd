"""``containerd-shim-spin-v1`` from a source checkout; the built binary enters ``launch`` itself."""

from __future__ import annotations

import sys

from containerd_shim_spin_v1 import KIND
from containerd_shimkit.launch import main as launch


def main() -> int:
    """Run the command line."""
    return launch(KIND, None)


if __name__ == "__main__":
    sys.exit(main())
