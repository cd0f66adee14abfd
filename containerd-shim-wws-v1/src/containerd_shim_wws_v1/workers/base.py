"""What the server knows of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from containerd_shim_wws_v1.instance import Instance
from containerd_shim_wws_v1.project.worker_config import WorkerConfig
from containerd_shim_wws_v1.services import Services
from containerd_shimkit.wasm.native import GuestError


class WorkerFailedError(GuestError):
    """A worker gave no response; it has said why on its standard error."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which worker it is, and what it may have."""

    file: str
    """Its path in the project, as messages have it: ``/api/hello.js``."""
    config: WorkerConfig
    stdout: Any
    """Results of ``output_callback``."""
    stderr: Any

    def instance(self, services: Services) -> Instance:
        """Return what a new guest has of the host."""
        return Instance(services, self.file, self.config.http)


class Worker(Protocol):
    """Answers requests, each in a guest of its own."""

    identity: Identity

    async def load(self, services: Services) -> None:
        """Get ready in the event loop that serves. Raises GuestError: it cannot answer."""

    async def run(self, services: Services, request: bytes) -> bytes:
        """Return the response to a request, both as JSON.

        Raises GuestError, EngineError.
        """
