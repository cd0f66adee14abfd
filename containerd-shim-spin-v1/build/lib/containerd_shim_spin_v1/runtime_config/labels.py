"""Whether the runtime configuration has what the components of an app ask for.

Faults are found at the start: a component would see them only when it asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from containerd_shim_spin_v1.manifest.model import AppManifest, Component
from containerd_shim_spin_v1.runtime_config.model import (
    CosmosStore,
    DynamoStore,
    LibsqlDatabase,
    RemoteLlm,
    RuntimeConfig,
)
from containerd_shimkit.errors import ManifestError

DEFAULT: Final = "default"
"""A store and a database of this label are there without being configured."""

_REFUSED: Final[Mapping[type, str]] = {
    CosmosStore: 'type "azure_cosmos" is not supported: use "redis" or "spin"',
    DynamoStore: 'type "aws_dynamo" is not supported: use "redis" or "spin"',
    LibsqlDatabase: 'type "libsql" is not supported: use "spin"',
}


def check_labels(app: AppManifest, config: RuntimeConfig) -> None:
    """Raise ManifestError with a line for each thing that a component cannot have.

    app: with the components that are served.  What no component asks for may be anything.
    """
    faults = [fault for component in app.components for fault in _faults(component, config)]
    if faults:
        raise ManifestError("\n".join(faults))


def _faults(component: Component, config: RuntimeConfig) -> Iterator[str]:
    stores, databases = component.key_value_stores, component.sqlite_databases
    for field, labels, table, configured in (
        ("key_value_stores", stores, "key_value_store", config.key_value_stores),
        ("sqlite_databases", databases, "sqlite_database", config.sqlite_databases),
    ):
        for label in labels:
            if (fault := _label_fault(label, table, configured)) is not None:
                yield f"{component.where}.{field}: {fault}"
    if component.ai_models and not isinstance(config.llm_compute, RemoteLlm):
        yield (
            f"{component.where}.ai_models: there are no models here: the runtime configuration "
            'needs [llm_compute] with type = "remote_http" and the url of a server'
        )


def _label_fault(label: str, table: str, configured: Mapping[str, Any]) -> str | None:
    if (found := configured.get(label)) is not None:
        refused = _REFUSED.get(type(found))
        return refused and f"[{table}.{label}] of the runtime configuration: {refused}"
    if label == DEFAULT:
        return None
    known = ", ".join(sorted({DEFAULT, *configured}))
    return f"{label!r} is not in the runtime configuration: add [{table}.{label}]; it has {known}"
