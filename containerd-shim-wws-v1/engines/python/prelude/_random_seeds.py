"""What the library's `random` imports at its end: generators that a snapshot must not repeat.

Those that have no seed of the worker's own are seeded anew for each request. One with a seed
repeats, as it does where each request runs the whole script.
"""

from __future__ import annotations

import random
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing it costs each request pages
    from typing import Any

_unseeded: weakref.WeakSet[random.Random] = weakref.WeakSet()
_library_seed = random.Random.seed


def _seed(self: random.Random, a: Any = None, version: int = 2) -> None:
    _library_seed(self, a, version)
    if a is None:
        _unseeded.add(self)
    else:
        _unseeded.discard(self)


def draw_anew() -> None:
    """Seed all generators that were seeded by chance."""
    for generator in list(_unseeded):
        _library_seed(generator)


random.Random.seed = _seed  # type: ignore[method-assign]
random.seed = random._inst.seed
_unseeded.add(random._inst)
