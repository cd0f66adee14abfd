"""What servers and the client of SpiderLightning 0.5 have in common.

Source: SpiderLightning 0.5 wit/http-types.wit.
"""

from __future__ import annotations

from typing import Final

from containerd_shimkit.wasm.canonical import STRING, U16, List, Record, Variant

METHODS: Final = {
    name: code
    for code, name in enumerate(("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"))
}

PAIRS: Final = List(Record(STRING, STRING))
"""Headers, and parameters of a route."""
HTTP_ERROR: Final = Variant(
    invalid_url=STRING,
    timeout_error=STRING,
    protocol_error=STRING,
    status_error=U16,
    unexpected_error=STRING,
)
