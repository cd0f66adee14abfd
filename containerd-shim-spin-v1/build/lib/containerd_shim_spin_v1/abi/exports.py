"""What a module has to export to be called by a trigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from containerd_shimkit.errors import ModuleError
from containerd_shimkit.wasm.exports import Exports, FunctionType, check_memory, export_fault

_REALLOC_TYPE: Final[FunctionType] = (("i32",) * 4, ("i32",))


@dataclass(frozen=True, slots=True)
class Handler:
    """An exported function that a trigger calls, and the allocator for its arguments."""

    function: bytes
    realloc: bytes
    type: FunctionType


def find_handler(exports: Exports, handlers: Sequence[Handler], trigger: str, name: str) -> Handler:
    """Return which of ``handlers`` a module has; the first is what messages ask for.

    trigger: for messages, as ``HTTP``.  name: what messages call the module.  Raises ModuleError.
    """
    found = next((h for h in handlers if exports.get(h.function.decode())), handlers[0])
    for function, type_ in ((found.function, found.type), (found.realloc, _REALLOC_TYPE)):
        if (fault := export_fault(exports, function.decode(), type_)) is None:
            continue
        if exports.get(function.decode()) is None:
            fault += f": it is no Spin {trigger} component"
            if trigger == "HTTP":
                fault += ' (a program with a main function wants executor = { type = "wagi" })'
        raise ModuleError(f"{name}: {fault}")
    check_memory(exports, name)
    return found


def check_command(exports: Exports, entrypoint: str, what: str, name: str) -> None:
    """Raise ModuleError unless a module has a function to be run as a program.

    what: of the manifest, for messages, as ``the wagi entrypoint``.
    """
    if entrypoint not in exports:
        raise ModuleError(f"{name}: exports no function {entrypoint!r}, {what}")
    if exports[entrypoint] != ((), ()):
        raise ModuleError(f"{name}: {what} {entrypoint!r} takes or returns values")
    check_memory(exports, name)
