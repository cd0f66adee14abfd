"""Measure our shims beside runc on one containerd, in one run: what ``make bench`` runs.

start      seconds from executing ``ctr run`` until the first 200. Warm: the zygote runs and the
           module is compiled; precompiled: the module only; cold: neither.
command    seconds of ``start``, the command that containerd executes, warm.
waterfall  where the time of a warm start goes.
pods       many pods at once, over CRI: seconds until all have answered, and until all are gone.
memory     PSS of few and of many containers, and what one more adds.
http       requests per second and latency of one container as ``wrk`` sees them.
waiting    many guests that wait on Redis, and one that never ends.
routing    finding a route among up to 10,000.
fibers     guests that wait in an import, all on one thread.

The other side is a static busybox httpd, about the smallest server a Linux container can hold. It
serves one file, forks for each connection and keeps none open: a reference, not a contest.

Nothing is asserted about the numbers. They are printed, and kept with the machine's load as JSON,
tables and pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

# In place of this directory, whose modules are those of a package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
