"""The table of states: every call in every state."""

from __future__ import annotations

import pytest

from containerd_shimkit.errors import FailedPreconditionError
from containerd_shimkit.task.state import TaskState, require

ALLOWED = {
    "start": {TaskState.CREATED},
    "pause": {TaskState.RUNNING},
    "resume": {TaskState.PAUSED},
    "update": {TaskState.CREATED, TaskState.RUNNING, TaskState.PAUSED},
    "delete": {TaskState.CREATED, TaskState.STOPPED},
}


@pytest.mark.parametrize("call", ALLOWED)
@pytest.mark.parametrize("state", TaskState, ids=lambda state: str(state.value))
def test_call_in_state(call: str, state: TaskState) -> None:
    if state in ALLOWED[call]:
        require(state, call)
    else:
        with pytest.raises(
            FailedPreconditionError, match=f"^cannot {call} a task in {state.value} state$"
        ):
            require(state, call)


def test_states_are_named_as_containerd_does() -> None:
    assert [state.name for state in TaskState] == ["CREATED", "RUNNING", "PAUSED", "STOPPED"]
