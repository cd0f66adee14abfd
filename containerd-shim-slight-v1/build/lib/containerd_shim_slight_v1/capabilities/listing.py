"""Lists of names, which stores may have more of than fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from containerd_shim_slight_v1.capabilities.errors import CapabilityError

MAX_NAMES: Final = 100_000
MAX_NAMES_BYTES: Final = 32 << 20
"""Of all names together, in UTF-8."""


class Names:
    """The names of one answer, each once, in the order in which they came."""

    def __init__(self, what: str, error: Callable[[str], CapabilityError]) -> None:
        """what: whose names they are.  error: of the family."""
        self._what = what
        self._error = error
        self._found: dict[str, None] = {}
        self._bytes = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def add(self, names: Iterable[str]) -> None:
        """Add some. Raises the family's error if there are too many."""
        for name in names:
            if name in self._found:
                continue
            self._found[name] = None
            self._bytes += len(name.encode(errors="replace"))
            if len(self._found) > MAX_NAMES or self._bytes > MAX_NAMES_BYTES:
                raise self._error(
                    f"{self._what} has more than {MAX_NAMES} names, or {MAX_NAMES_BYTES} bytes"
                    " of them"
                )
