"""The states of a task and the moves between them, as data.

    CREATED ── start ──> RUNNING ── exit ──> STOPPED ── delete ──> (gone)
       └────── exit ─────────────────────────^
    RUNNING <── pause / resume ──> PAUSED

Calls that a state does not allow fail with one sentence and change nothing.
"""

from __future__ import annotations

from enum import Enum

from containerd_shimkit.errors import FailedPreconditionError


class TaskState(Enum):
    """Where a task is in its life. Names are those of containerd's ``Status``."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


_ALLOWED: dict[str, frozenset[TaskState]] = {
    "start": frozenset({TaskState.CREATED}),
    "pause": frozenset({TaskState.RUNNING}),
    "resume": frozenset({TaskState.PAUSED}),
    "update": frozenset({TaskState.CREATED, TaskState.RUNNING, TaskState.PAUSED}),
    "delete": frozenset({TaskState.CREATED, TaskState.STOPPED}),
}


def require(state: TaskState, call: str) -> None:
    """Raise FailedPreconditionError unless ``call`` is allowed in ``state``."""
    if state not in _ALLOWED[call]:
        raise FailedPreconditionError(f"cannot {call} a task in {state.value} state")
