"""Microseconds to find a request's route among few and many."""

from __future__ import annotations

import timeit
from functools import partial

from bench.machine import Json
from containerd_shim_spin_v1.routing.v1 import Router

COUNTS = (1, 10, 100, 1000, 10_000)
_MATCHES = 2000
_REPEATS = 7


def measure_routing() -> Json:
    """Return, by number of routes, the seconds of a match: of the last route, and of a prefix."""
    results: Json = {"exact": {}, "prefix": {}}
    for count in COUNTS:
        names = [f"component-{number}" for number in range(count)]
        last = f"/api/{names[-1]}"
        for kind, end, path in (("exact", "", last), ("prefix", "/...", f"{last}/a/b")):
            router = Router("/", [(name, f"/api/{name}{end}") for name in names])
            timer = timeit.Timer(partial(router.match, path))
            times = timer.repeat(_REPEATS, _MATCHES)
            results[kind][str(count)] = [seconds / _MATCHES for seconds in times]
    return results
