"""The tables of the host interfaces: functions with their types, and how errors become values.

A function of a resource is called ``RESOURCE::NAME``, in a module named after the interface; what
drops a handle, or makes another one of the same, is in the module ``canonical_abi``.

Source: SpiderLightning 0.5 crates/runtime/test/keyvalue-test.wasm, examples/
multi_capability-demo-clang/bindings; wit-bindgen 0.2 crates/gen-guest-c.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from containerd_shim_slight_v1.capabilities.errors import (
    UNEXPECTED,
    CapabilityError,
    NoCapabilityError,
)
from containerd_shim_slight_v1.capabilities.handles import BadHandleError
from containerd_shim_slight_v1.capabilities.instance import Instance
from containerd_shimkit.wasm import interfaces
from containerd_shimkit.wasm.canonical import STRING, U32, AbiError, Variant
from containerd_shimkit.wasm.interfaces import ErrorOf, Function, Report

OLD_ERROR: Final = Variant(error_with_description=STRING)
"""Of SpiderLightning 0.1 and 0.2, for every interface."""

log = logging.getLogger(__name__)


def error_of(kind: type[CapabilityError]) -> ErrorOf:
    """Return what makes values of a family's errors. kind: those whose cases are its own."""

    def value(exc: Exception) -> tuple[str, str] | None:
        _check_handle(exc)
        if isinstance(exc, CapabilityError):
            return exc.case if isinstance(exc, kind) else UNEXPECTED, str(exc)
        return None

    return value


def old_error(exc: Exception) -> tuple[str, str] | None:
    """Return the value of an error for ``OLD_ERROR``."""
    _check_handle(exc)
    return ("error-with-description", str(exc)) if isinstance(exc, CapabilityError) else None


def _check_handle(exc: Exception) -> None:
    if isinstance(exc, BadHandleError):
        raise AbiError(str(exc)) from None


def _report(_instance: Instance, name: str, exc: Exception, _has_text: bool) -> None:
    """Whoever runs the app is to see what its slightfile lacks."""
    if isinstance(exc, NoCapabilityError):
        log.warning("%s: %s", name, exc)


@dataclass(frozen=True, slots=True)
class Interface(interfaces.Interface):
    """An interface as one generation of guests imports it; its functions get the ``Instance``."""

    report: Report | None = _report


def handle_functions(resources: Iterable[str]) -> Interface:
    """Return the module of functions that drop and clone handles of these resources."""
    functions = []
    for name in resources:
        functions.append(Function(f"resource_drop_{name}", [U32], None, _drop))
        functions.append(Function(f"resource_clone_{name}", [U32], U32, _clone))
    return Interface("canonical_abi", functions, lambda _: None)


async def _drop(instance: Instance, handle: int) -> None:
    try:
        await instance.handles.drop(handle)
    except BadHandleError as exc:
        _check_handle(exc)


async def _clone(instance: Instance, handle: int) -> Any:
    try:
        return instance.handles.clone(handle)
    except (BadHandleError, CapabilityError) as exc:
        raise AbiError(str(exc)) from None


__all__ = ["OLD_ERROR", "Function", "Interface", "error_of", "handle_functions", "old_error"]
