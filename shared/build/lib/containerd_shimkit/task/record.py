"""What a shim writes into the bundle so that ``delete`` can clean up after it was killed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

_FILE: Final = "init.json"


@dataclass(frozen=True, slots=True)
class InitRecord:
    """Identity of a container's init: a pid alone may be another process by now."""

    pid: int
    start_time: int
    """Clock ticks after boot: field 22 of /proc/PID/stat (proc(5))."""
    cgroups_path: str = ""
    """As in the spec, in case that cannot be read any more."""
    runtime: tuple[str, ...] = ()
    """Of an ordinary container: the OCI runtime and its options, up to the command."""

    @classmethod
    def of(cls, pid: int, cgroups_path: str = "", runtime: tuple[str, ...] = ()) -> InitRecord:
        """Return the record of a living process. Raises OSError if it is gone."""
        return cls(pid, _start_time(pid), cgroups_path, runtime)

    @classmethod
    def load(cls, bundle: Path) -> InitRecord | None:
        """Return the bundle's record, or None if it is missing or unreadable."""
        try:
            data = json.loads((bundle / _FILE).read_text())
            path, runtime = data.get("cgroups_path", ""), data.get("runtime", ())
            return cls(
                int(data["pid"]), int(data["start_time"]), str(path), tuple(map(str, runtime))
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, bundle: Path) -> None:
        """Write the record into the bundle, whole or not at all."""
        temporary = bundle / f".{_FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(asdict(self)))
        temporary.rename(bundle / _FILE)

    def is_alive(self) -> bool:
        """Whether the very process of this record still runs."""
        try:
            return _start_time(self.pid) == self.start_time
        except OSError:
            return False


def _start_time(pid: int) -> int:
    # The command in parentheses may hold spaces and parentheses of its own.
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return int(stat.rpartition(")")[2].split()[19])
