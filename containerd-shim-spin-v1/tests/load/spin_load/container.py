"""The app in a container, and what its engine has open."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import App, Node, eventually
from spin_load.app import files
from spin_load.kinds import SLEEPING, Kind
from spin_load.servers import Servers
from spin_load.traffic import DEADLINE, environment, request, run_rounds

_LOOKS = 20  # a tenth of a second


@dataclass(frozen=True)
class Figures:
    """Of one moment in which no request is under way."""

    descriptors: int
    """Of the engine, without those of connections to servers, and of ``database_files``."""
    database_files: int
    """SQLite closes none while another connection of the process has a lock on the same file, and
    takes it for the next one: there are as many as ever were open at once, 64 at most."""
    threads: int
    pss_bytes: int
    connections: dict[str, int]
    """Of each server, seen from there."""


class Container:
    """A running container of the app."""

    def __init__(
        self,
        node: Node,
        servers: Servers,
        deadline: float = DEADLINE,
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """deadline: of a request, in seconds."""
        pairs = files(servers).items()
        image = node.image([ImageFile(name, data) for name, data in pairs])
        self.app: App = node.run(image, env=environment(deadline) | dict(env))
        self.servers = servers

    def make(self, kinds: Sequence[Kind], rounds: int) -> int:
        """Make requests; return how many, when no guest runs any more. Raises AssertionError."""

        async def make() -> int:
            count = await run_rounds(*self.app.address, kinds, rounds)
            # What others left behind them began before this one does, and ends before.
            await request(*self.app.address, SLEEPING)
            return count

        return asyncio.run(make())

    def figures(self) -> Figures:
        """Return them when connections have neither begun nor ended for a moment."""
        seen: list[tuple[list[str], dict[str, int]]] = []

        def settled() -> bool:
            seen.append((_open_names(self.app.pid), self.servers.connections()))
            return len(seen) >= _LOOKS and all(one == seen[-1] for one in seen[-_LOOKS:])

        eventually(settled, "connections come and go no more")
        names, connections = seen[-1]
        database_files = sum(name.endswith("/sqlite_db.db") for name in names)
        rollup = Path(f"/proc/{self.app.pid}/smaps_rollup").read_text()
        pss = re.search(r"^Pss: +(\d+) kB$", rollup, re.MULTILINE)
        assert pss is not None
        return Figures(
            len(names) - database_files - sum(connections.values()),
            database_files,
            len(list(Path(f"/proc/{self.app.pid}/task").iterdir())),
            int(pss[1]) * 1024,
            connections,
        )

    def stop(self) -> None:
        """Stop it; AssertionError if a connection is left then, or a traceback in the log."""
        log = self.app.log_file
        assert self.app.stop() == 0
        eventually(self.servers.all_closed, "the servers have no connection any more")
        assert "Traceback" not in log.read_text(errors="replace")


def _open_names(pid: int) -> list[str]:
    """Return what the process's descriptors are of."""
    names = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            names.append(str(entry.readlink()))
    return names
