"""Requests of workers to servers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from containerd_shim_wws_v1.project.worker_config import HttpRequests


class OutboundError(Exception):
    """A request that has no response; ``case`` is the interface's."""

    case: ClassVar[str] = "internal-error"


@dataclass(frozen=True, slots=True)
class OutboundRequest:
    """A guest's request."""

    method: str
    url: str = field(repr=False)
    headers: list[tuple[str, str]] = field(default_factory=list, repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class OutboundResponse:
    """A whole response."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = field(repr=False)


class OutboundHttp:
    """The connections of an app."""

    async def send(
        self, worker: str, may: HttpRequests, request: OutboundRequest
    ) -> OutboundResponse:
        raise OutboundError("not yet")

    async def close(self) -> None:
        """End every connection."""
