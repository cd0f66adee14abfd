"""Which origins may read what workers answer: ``--cors`` of upstream.

With several origins, upstream names them all in one header, which no browser understands; here the
one that asks is named.

Source: wasm-workers-server 1.7 crates/server/src/handlers/worker.rs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from containerd_shimkit.http.messages import Headers
from containerd_shimkit.http.server import Scope

_ALLOW: Final = b"access-control-allow-origin"


class Cors:
    """The origins of an app."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = [origin.encode() for origin in origins]

    def headers(self, scope: Scope, own: Headers) -> Headers:
        """Return what is added to a worker's headers. own: what it says itself counts."""
        if not self._origins or any(name == _ALLOW for name, _ in own):
            return []
        if len(self._origins) == 1:
            return [(_ALLOW, self._origins[0])]
        asking = next((v for n, v in scope["headers"] if n == b"origin"), None)
        allowed = b"*" if b"*" in self._origins else asking
        if allowed != b"*" and allowed not in self._origins:
            return [(b"vary", b"origin")]
        return [(_ALLOW, allowed), (b"vary", b"origin")] if allowed else []
