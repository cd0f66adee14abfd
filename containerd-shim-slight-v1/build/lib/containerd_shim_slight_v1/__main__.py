"""``containerd-shim-slight-v1`` from a source checkout; the binary enters ``launch`` itself."""

from __future__ import annotations

import sys

from containerd_shim_slight_v1 import KIND
from containerd_shimkit.launch import main as launch


def main() -> int:
    """Run the command line."""
    return launch(KIND, None)


if __name__ == "__main__":
    sys.exit(main())
