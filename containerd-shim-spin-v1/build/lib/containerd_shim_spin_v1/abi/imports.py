"""The tables of the host interfaces: functions with their types, and how errors become values."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from containerd_shim_spin_v1.host.instance import Instance
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError
from containerd_shimkit.wasm import interfaces
from containerd_shimkit.wasm.interfaces import Function, Report

log = logging.getLogger(__name__)


def _report(instance: Instance, name: str, exc: Exception, has_text: bool) -> None:
    """Whoever runs the app is to see what the guest is not told, or what the manifest lacks."""
    if not has_text or isinstance(exc, DestinationNotAllowedError):
        log.warning("component %r: %s: %s", instance.component_id, name, exc)


@dataclass(frozen=True, slots=True)
class Interface(interfaces.Interface):
    """An interface as one generation of guests imports it; its functions get the ``Instance``."""

    report: Report | None = _report


__all__ = ["Function", "Interface"]
