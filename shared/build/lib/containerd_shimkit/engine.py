"""What the kit asks of an engine, and what an engine gets to know of its container.

An engine runs in the container's init, after isolation: the image is at ``/``, the process has
the container's user, and nothing can be imported any more, but for what ``imports_late`` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from containerd_shimkit.output import OutputWriter


@dataclass(frozen=True, slots=True)
class RuntimeContext:
    """The container, as far as an engine needs to know it."""

    task_id: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    hostname: str
    memory_limit_bytes: int | None
    """The cgroup's limit; None is unlimited."""
    processors: int
    """How many the CPU quota amounts to, rounded up; 1 without quota."""
    compile: Callable[[int, str], int]
    """Descriptor of a ``.wasm`` file, its name for messages -> descriptor of its compiled form."""
    ca_bundle: int | None
    """Descriptor of the certificate authorities that the node trusts, PEM; None without any."""
    directories: tuple[tuple[str, str], ...]
    """What a guest may read: (path, path the guest sees); see ``guest_files``."""
    stdout: OutputWriter
    """The container's standard output; never blocks."""
    stderr: OutputWriter


class Engine(Protocol):
    """Runs the apps of one kind. Made anew for each container."""

    imports_late: ClassVar[bool]
    """Whether ``prepare`` may import modules of ours; see ``late``. It makes a start longer."""

    def prepare(self, context: RuntimeContext) -> Any:
        """Find, check and compile the app; return it for ``serve``.

        Raises ShimError with a message that names file, field, value and rule.
        """

    def listen(self, app: Any) -> int:
        """Bind the address the app is reached at; return how many processes are to serve it.

        If it is more than one the process is forked, and each fork calls ``serve``. So there must
        be no threads yet. Raises ShimError if the app cannot be started.
        """

    async def serve(self, app: Any, ready: Callable[[], None], stop: asyncio.Event) -> int:
        """Run the app until it ends or ``stop`` is set, then end what is in flight.

        Call ``ready`` once the app can be reached: ``Start`` returns then. Returns the exit code.
        Raises ShimError if the app cannot be started.
        """

    def close(self, app: Any) -> None:
        """Remove what ``prepare`` left in the container's files; nobody serves the app any more."""
