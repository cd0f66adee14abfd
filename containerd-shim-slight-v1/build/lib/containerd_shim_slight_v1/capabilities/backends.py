"""Finding the modules of backends: ``capabilities.FAMILY.BACKEND``, whose class is ``Backend``.

A module is imported only if a slightfile asks for it: some bring large libraries. So a new backend
is a new file and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any, Final

# Those that need nothing are imported ahead.
import containerd_shim_slight_v1.capabilities.configs.envvars
import containerd_shim_slight_v1.capabilities.keyvalue.filesystem
import containerd_shim_slight_v1.capabilities.messaging.filesystem  # noqa: F401
from containerd_shim_slight_v1.slightfile.model import Capability, SlightFile
from containerd_shim_slight_v1.slightfile.resources import CONFIGS, RESOURCES, Resource
from containerd_shimkit.errors import ManifestError

_PACKAGE: Final = __name__.rpartition(".")[0]

BackendClasses = dict[Resource, Any]
"""The class of each resource that has backends."""


def load_backends(slightfile: SlightFile) -> BackendClasses:
    """Import what a slightfile asks for. Raises ManifestError for what there is no backend of."""
    classes: BackendClasses = {}
    for capability in slightfile.capabilities:
        if capability.resource.backend:
            _load(capability.resource, capability.where, classes)
        for store in _stores(slightfile, capability):
            _load(RESOURCES[f"{CONFIGS}.{store}"], capability.where, classes)
    return classes


def _stores(slightfile: SlightFile, capability: Capability) -> Iterable[str]:
    names = {reference.store for reference in (capability.configs or {}).values()}
    if slightfile.secret_store is not None:
        names.add(slightfile.secret_store)
    return names - {"local"}


def _load(resource: Resource, where: str, classes: BackendClasses) -> None:
    if resource in classes:
        return
    name = f"{_PACKAGE}.{resource.family}.{resource.backend}"
    try:
        classes[resource] = import_module(name).Backend
    except ModuleNotFoundError as exc:
        if exc.name is None or not name.startswith(exc.name):
            raise
        raise ManifestError(f"{where}: {resource.name} is not served by this shim") from None
