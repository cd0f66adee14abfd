"""Manifest version 2: ``spin_manifest_version = 2``.

Triggers and components are tables of their own; a trigger names its component or holds it.
Source: Spin 3.6 crates/manifest/src/{schema/v2,schema/common,normalize}.rs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from containerd_shim_spin_v1.files.globs import glob_fault
from containerd_shim_spin_v1.manifest.fields import (
    read_build,
    read_files,
    read_hosts,
    read_source,
    read_templates,
    read_variables,
)
from containerd_shim_spin_v1.manifest.model import AppManifest, Component, Trigger, Variable
from containerd_shim_spin_v1.manifest.rules import (
    base_fault,
    env_name_fault,
    env_value_fault,
    host_rule,
    kebab_fault,
    label_v2_fault,
    not_empty,
)
from containerd_shim_spin_v1.manifest.templates import Template, literal
from containerd_shim_spin_v1.manifest.triggers import TriggerContext, read_address, read_trigger
from containerd_shim_spin_v1.outbound.allowed_http_hosts import convert_http_hosts, http_host_fault
from containerd_shimkit.text.toml_reader import Problems, Table, nearest, type_name
from containerd_shimkit.text.toml_source import ParsedFile

NO_COMPONENT_MODEL = (
    "composes WebAssembly components, which are not supported yet, only core modules"
)


_OF_VERSION_1 = {
    key: f"is `application.{key}` in version 2"
    for key in ("name", "version", "description", "authors")
}
_OF_COMPONENTS_1 = {
    "id": "is in the table's name in version 2, [component.<id>]",
    "config": "is called `variables` in version 2",
    "trigger": 'is a table of its own in version 2, [[trigger.http]] with `component = "<id>"`',
}


def parse_v2(source: ParsedFile) -> AppManifest:
    """Read a manifest of version 2; raises ManifestError, see ``parse_manifest``."""
    problems = Problems(source)
    top = Table(problems, source.data)
    top.raw("spin_manifest_version")
    top.foreign(_OF_VERSION_1)
    variables = read_variables(top)
    components = _components(top, variables)
    # Without the table that is the fault; the fields it would hold are none of their own.
    details = top.required_table("application") or Table(problems, {"name": "?"})
    context = TriggerContext()
    _app_settings(details, context, variables)
    triggers = _triggers(top, context, components, variables)
    app = AppManifest(
        manifest_version=2,
        name=details.required_string("name", not_empty),
        version=details.optional_string("version") or None,
        description=details.optional_string("description") or "",
        authors=details.strings("authors"),
        http_base=context.http_base,
        trigger_settings=context.others,
        variables=variables,
        components=tuple(components.values()),
        triggers=triggers,
    )
    _check_targets(details)
    _check_tools(details)
    details.done()
    top.done()
    problems.raise_if_any()
    return app


def _app_settings(
    details: Table, context: TriggerContext, variables: Mapping[str, Variable]
) -> None:
    """Read ``[application.trigger.*]``."""
    table = details.optional_table("trigger")
    for trigger_type, settings in table.child_tables() if table else ():
        if trigger_type == "http":
            context.http_base = settings.optional_string("base", base_fault) or "/"
            settings.done()
        elif trigger_type == "redis":
            if "address" not in settings.names():
                settings.missing("address")
            context.redis_address = read_address(settings, variables)
            settings.done()
        else:
            context.others[trigger_type] = {key: settings.raw(key) for key in settings.names()}


# Components


def _components(top: Table, variables: Mapping[str, Variable]) -> dict[str, Component]:
    if isinstance(top.raw("component"), list):
        top.fault("component", "must be one table for each in version 2, [component.<id>]")
        return {}
    table = top.optional_table("component")
    components = {}
    for component_id, entry in table.child_tables() if table else ():
        if (fault := kebab_fault(component_id)) is not None:
            cast(Table, table).problem(component_id, fault)
        components[component_id] = _component(entry, component_id, variables)
    return components


def _component(table: Table, component_id: str, variables: Mapping[str, Variable]) -> Component:
    component = Component(
        id=component_id,
        source=read_source(table, registries=True),
        description=table.optional_string("description") or "",
        files=read_files(table),
        exclude_files=table.strings("exclude_files", glob_fault),
        environment=table.string_map("environment", env_name_fault, env_value_fault),
        variables=read_templates(table, "variables", variables),
        allowed_outbound_hosts=_hosts(table, variables),
        key_value_stores=table.strings("key_value_stores", label_v2_fault),
        sqlite_databases=table.strings("sqlite_databases", label_v2_fault),
        ai_models=table.strings("ai_models", not_empty),
        build=read_build(table),
        where=table.where,
    )
    _check_targets(table)
    _check_tools(table)
    _check_profiles(table)
    table.optional_boolean("dependencies_inherit_configuration")
    _refuse_dependencies(table)
    table.foreign(_OF_COMPONENTS_1)
    table.done()
    return component


def _hosts(table: Table, variables: Mapping[str, Variable]) -> tuple[Template, ...]:
    hosts = read_hosts(table, host_rule(variables))
    older = table.strings("allowed_http_hosts", http_host_fault)
    return hosts + tuple(map(literal, convert_http_hosts(older, databases=False)))


def _refuse_dependencies(table: Table) -> None:
    if table.optional_table("dependencies") is not None and table.raw("dependencies"):
        table.problem("dependencies", NO_COMPONENT_MODEL)


def _check_targets(table: Table) -> None:
    """Check ``targets``: names of environments, or where one is described."""
    values = table.raw("targets")
    if values is None:
        return
    if not isinstance(values, list):
        table.fault("targets", f"must be an array, not {type_name(values)}")
        return
    for index, value in enumerate(values):
        if isinstance(value, dict):
            target = table.element_table("targets", index)
            if sum(key in value for key in ("url", "path")) != 1:
                table.element_fault("targets", index, "must be a name, { url } or { path }")
            target.optional_string("url")
            target.optional_string("path")
            target.done()
        elif not isinstance(value, str):
            rule = f"must be a name, {{ url }} or {{ path }}, not {type_name(value)}"
            table.element_fault("targets", index, rule)


def _check_tools(table: Table) -> None:
    """Check ``tool``: a table for each tool, with whatever that tool wants."""
    tools = table.optional_table("tool")
    if tools is not None:
        tools.child_tables()


def _check_profiles(table: Table) -> None:
    """Check ``profile``: what ``spin build`` and ``spin up --profile`` change; we never do."""
    profiles = table.optional_table("profile")
    for _, profile in profiles.child_tables() if profiles else ():
        if profile.raw("source") is not None:
            read_source(profile, registries=True)
        profile.string_map("environment", env_name_fault, env_value_fault)
        profile.optional_table("dependencies")
        build = profile.optional_table("build")
        if build is not None:
            build.required_strings_or_one("command")
            build.done()
        profile.done()


# Triggers


def _triggers(
    top: Table,
    context: TriggerContext,
    components: dict[str, Component],
    variables: Mapping[str, Variable],
) -> tuple[Trigger, ...]:
    """Read ``[[trigger.*]]``; the components they hold are added to ``components``."""
    types = top.required_table("trigger")
    if types is not None and isinstance(types.raw("type"), str):
        top.fault("trigger", "must be tables of triggers in version 2, [[trigger.http]]")
        return ()
    found = []
    tables = [
        (trigger_type, table)
        for trigger_type in (types.names() if types else ())
        for table in cast(Table, types).tables(trigger_type)
    ]
    taken = {id_ for _, table in tables if (id_ := table.optional_string("id"))}
    seen: dict[str, str] = {}
    counters: dict[str, Iterator[str]] = {}
    for trigger_type, table in tables:
        id_ = table.optional_string("id") or ""
        if not id_:
            id_ = _trigger_id(trigger_type, table.raw("component"), taken, counters)
            taken.add(id_)
        elif id_ in seen:
            table.fault("id", f"{seen[id_]} has this id already")
        seen.setdefault(id_, table.label)
        table.label = f'{table.label} ("{id_}")'
        component = _component_of(table, id_, components, variables)
        _refuse_roles(table)
        found.append(read_trigger(table, trigger_type, id_, component, context, variables))
    return tuple(found)


def _trigger_id(
    trigger_type: str, component: Any, taken: set[str], counters: dict[str, Iterator[str]]
) -> str:
    """Return the id of a trigger that has none, as Spin makes it."""
    if isinstance(component, str) and (id_ := f"{component}-{trigger_type}-trigger") not in taken:
        return id_
    numbered = counters.setdefault(
        trigger_type, (f"{trigger_type}-trigger{n}" for n in range(1, 1 << 31))
    )
    return next(id_ for id_ in numbered if id_ not in taken)


def _component_of(
    table: Table,
    trigger_id: str,
    components: dict[str, Component],
    variables: Mapping[str, Variable],
) -> str | None:
    """Return the id of a trigger's component; one that it holds is added to ``components``."""
    value = table.raw("component")
    if value is None:
        return None
    if isinstance(value, dict):
        inline = cast(Table, table.optional_table("component"))
        id_ = f"{trigger_id}-component"
        if kebab_fault(id_) is not None or id_ in components:
            numbered = (f"inline-component{n}" for n in range(1, 1 << 31))
            id_ = next(name for name in numbered if name not in components)
        components[id_] = _component(inline, id_, variables)
        return id_
    if not isinstance(value, str):
        table.fault("component", f"must be an id or a table, not {type_name(value)}")
    elif value not in components:
        hint = nearest(value, components, "components")
        table.fault("component", f"there is no such component; {hint}")
    return str(value)


def _refuse_roles(table: Table) -> None:
    for key in ("components", "dependencies"):
        if table.optional_table(key) is not None and table.raw(key):
            table.problem(key, NO_COMPONENT_MODEL)
