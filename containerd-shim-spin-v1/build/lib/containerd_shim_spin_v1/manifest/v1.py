"""Manifest version 1: ``spin_manifest_version = "1"``, in older files ``spin_version = "1"``.

The app has one trigger, and each component says how it hangs on it. Beyond what Spin 1.5 knows,
``allowed_outbound_hosts`` is read too, which Spin 2 accepts in files of this version.
Sources: Spin 1.5 crates/loader/src/{local/config,common,validation}.rs; Spin 2.0
crates/manifest/src/schema/v1.rs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from containerd_shim_spin_v1.files.globs import glob_fault
from containerd_shim_spin_v1.manifest.fields import (
    plain,
    read_build,
    read_executor,
    read_files,
    read_hosts,
    read_route,
    read_source,
    read_templates,
    read_variables,
)
from containerd_shim_spin_v1.manifest.model import (
    AppManifest,
    Component,
    HostsField,
    HttpTrigger,
    OtherTrigger,
    RedisTrigger,
    Trigger,
    Variable,
)
from containerd_shim_spin_v1.manifest.rules import (
    base_fault,
    env_name_fault,
    env_value_fault,
    host_rule,
    label_fault,
    not_empty,
    printable_fault,
    route_fault,
)
from containerd_shim_spin_v1.manifest.templates import Template, literal
from containerd_shim_spin_v1.outbound.allowed_hosts import ALLOW_ALL
from containerd_shim_spin_v1.outbound.allowed_http_hosts import convert_http_hosts, http_host_fault
from containerd_shimkit.text.toml_reader import Problems, Table
from containerd_shimkit.text.toml_source import ParsedFile

_OF_VERSION_2 = {
    "application": "is of version 2; for that, write `spin_manifest_version = 2`",
}
_OF_COMPONENTS_2 = {
    "variables": "is called `config` in version 1",
    "tool": "is of version 2",
    "targets": "is of version 2",
    "dependencies": "is of version 2",
}
_VERSION_KEYS = ("spin_manifest_version", "spin_version")


@dataclass(slots=True)
class _AppTrigger:
    """What the app says of its one trigger type."""

    type: str = ""
    base: str = "/"
    address: Template | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


def parse_v1(source: ParsedFile) -> AppManifest:
    """Read a manifest of version 1; raises ManifestError, see ``parse_manifest``."""
    problems = Problems(source)
    top = Table(problems, source.data)
    _check_version(top)
    top.foreign(_OF_VERSION_2)
    app_trigger = _app_trigger(top)
    variables = read_variables(top)
    components, triggers = _components(top, app_trigger, variables)
    app = AppManifest(
        manifest_version=1,
        name=top.required_string("name", not_empty),
        version=top.required_string("version"),
        description=top.optional_string("description") or "",
        authors=top.strings("authors"),
        namespace=top.optional_string("namespace"),
        http_base=app_trigger.base,
        trigger_settings={app_trigger.type: app_trigger.settings} if app_trigger.settings else {},
        variables=variables,
        components=components,
        triggers=triggers,
    )
    top.done()
    problems.raise_if_any()
    return app


def _check_version(top: Table) -> None:
    given = [key for key in _VERSION_KEYS if top.raw(key) is not None]
    for key in given[:1]:
        value = top.raw(key)
        if value != "1" and not (type(value) is int and value == 1):
            top.fault(key, 'must be "1", or for version 2 `spin_manifest_version = 2`')
    for key in given[1:]:
        top.fault(key, f"the version is given already, as `{given[0]}`")
    if not given:
        top.missing(_VERSION_KEYS[0])


def _app_trigger(top: Table) -> _AppTrigger:
    table = top.required_table("trigger")
    if table is None:
        return _AppTrigger()
    found = _AppTrigger(table.required_string("type", not_empty), where=table.where)
    if found.type == "http":
        found.base = table.required_string("base", base_fault)
    elif found.type == "redis":
        found.address = literal(table.required_string("address", not_empty))
    else:
        found.settings = {key: table.raw(key) for key in table.names() if key != "type"}
    table.done()
    return found


def _components(
    top: Table, app_trigger: _AppTrigger, variables: Mapping[str, Variable]
) -> tuple[tuple[Component, ...], tuple[Trigger, ...]]:
    components, triggers = [], []
    ids: dict[str, str] = {}
    for table in top.tables("component"):
        component_id = table.required_string("id", printable_fault)
        label = table.label
        if component_id:
            table.label = f'{label} ("{component_id}")'
            if component_id in ids:
                table.fault("id", f"{ids[component_id]} has this id already")
            ids.setdefault(component_id, label)
        components.append(_component(table, component_id, variables))
        triggers.append(_trigger(table, component_id, app_trigger))
        table.foreign(_OF_COMPONENTS_2)
        table.done()
    return tuple(components), tuple(triggers)


def _component(table: Table, component_id: str, variables: Mapping[str, Variable]) -> Component:
    hosts, hosts_field = _hosts(table, variables)
    return Component(
        id=component_id,
        source=read_source(table, registries=False),
        description=table.optional_string("description") or "",
        files=read_files(table),
        exclude_files=table.strings("exclude_files", glob_fault),
        environment=table.string_map("environment", env_name_fault, env_value_fault),
        variables=read_templates(table, "config", variables),
        allowed_outbound_hosts=hosts,
        hosts_field=hosts_field,
        key_value_stores=table.strings("key_value_stores", label_fault),
        sqlite_databases=table.strings("sqlite_databases", not_empty),
        ai_models=table.strings("ai_models", not_empty),
        build=read_build(table),
        where=table.where,
    )


def _hosts(
    table: Table, variables: Mapping[str, Variable]
) -> tuple[tuple[Template, ...], HostsField]:
    """Return both fields as one.

    Where only the older one may be, components can reach every database: then there was no
    field to restrict that.
    """
    newer = "allowed_outbound_hosts" in table.names()
    hosts = read_hosts(table, host_rule(variables))
    http_hosts = table.strings("allowed_http_hosts", _http_host_rule)
    converted = convert_http_hosts(
        (host for host in http_hosts if http_host_fault(host) is None), databases=not newer
    )
    return (
        hosts + tuple(map(literal, converted)),
        "allowed_outbound_hosts" if newer else "allowed_http_hosts",
    )


def _http_host_rule(text: str) -> str | None:
    if text in ("*", "allow-all"):
        return f"did you mean `{ALLOW_ALL}`?"
    return http_host_fault(text)


def _trigger(table: Table, component_id: str, app_trigger: _AppTrigger) -> Trigger:
    trigger = table.required_table("trigger")
    id_ = f"trigger-{component_id}"
    if trigger is None:
        return OtherTrigger(type=app_trigger.type, id=id_, component=component_id)
    result: Trigger
    where = app_trigger.where
    match app_trigger.type:
        case "http":
            result = HttpTrigger(
                id=id_,
                component=component_id,
                route=read_route(trigger, route_fault),
                executor=read_executor(trigger),
                where=where,
            )
        case "redis":
            result = RedisTrigger(
                id=id_,
                component=component_id,
                channel=trigger.required_string("channel", not_empty),
                address=app_trigger.address or literal(""),
                where=where,
            )
            _spin_executor_only(trigger)
        case _:
            settings = plain({key: trigger.raw(key) for key in trigger.names()})
            return OtherTrigger(
                type=app_trigger.type,
                id=id_,
                component=component_id,
                settings=settings,
                where=where,
            )
    trigger.done()
    return result


def _spin_executor_only(trigger: Table) -> None:
    table = trigger.optional_table("executor")
    if table is not None:
        table.required_string("type", lambda text: None if text == "spin" else 'must be "spin"')
        table.done()
