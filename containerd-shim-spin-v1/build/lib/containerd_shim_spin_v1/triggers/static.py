"""Answers that the manifest itself holds, ``static_response`` of an HTTP trigger."""

from __future__ import annotations

from dataclasses import dataclass

from containerd_shim_spin_v1.manifest.model import HttpTrigger, StaticResponse
from containerd_shimkit.http.messages import FRAMING


@dataclass(frozen=True, slots=True)
class StaticResponder:
    """Stands where a component would."""

    id: str
    """The trigger's, for messages."""
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @classmethod
    def of(cls, trigger: HttpTrigger, response: StaticResponse) -> StaticResponder:
        headers = [(k.lower().encode(), v.encode()) for k, v in response.headers.items()]
        # Where the answer ends is the server's to say, whatever the manifest says.
        headers = [pair for pair in headers if pair[0] not in FRAMING]
        return cls(trigger.id, response.status, headers, response.body.encode())
