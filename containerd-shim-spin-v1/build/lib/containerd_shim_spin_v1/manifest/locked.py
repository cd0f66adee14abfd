"""The locked form of an app: JSON that ``spin`` writes as ``spin.lock`` and into OCI artifacts.

Written by programs, so unlike a manifest it may hold fields nobody here knows; what a reader has to
know is named in ``must_understand`` and ``host_requirements``. Spin 1.x wrote ``metadata.trigger``
for its one trigger type, Spin 2 and later ``metadata.triggers`` (and the former beside it).
Source: Spin 3.6 crates/locked-app/src/locked.rs, crates/loader/src/local.rs.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from containerd_shim_spin_v1.files.plan import entry_fault
from containerd_shim_spin_v1.manifest.fields import read_hosts, read_templates
from containerd_shim_spin_v1.manifest.model import (
    AppManifest,
    Component,
    Content,
    FileContent,
    FileEntry,
    FilePlacement,
    FileSource,
    HostsField,
    Trigger,
    Variable,
)
from containerd_shim_spin_v1.manifest.rules import (
    base_fault,
    digest_fault,
    env_name_fault,
    env_value_fault,
    host_rule,
    not_empty,
    printable_fault,
)
from containerd_shim_spin_v1.manifest.templates import Template, literal, name_fault
from containerd_shim_spin_v1.manifest.triggers import TriggerContext, read_address, read_trigger
from containerd_shim_spin_v1.manifest.v2 import NO_COMPONENT_MODEL
from containerd_shim_spin_v1.outbound.allowed_http_hosts import convert_http_hosts, http_host_fault
from containerd_shimkit.text.toml_reader import Problems, Table, nearest, shown
from containerd_shimkit.text.toml_source import ParsedFile

_UNDERSTOOD = ("host_requirements", "component_host_requirements")
_REQUIREMENTS = ("local_service_chaining",)


def parse_locked(source: ParsedFile) -> AppManifest:
    """Read a locked app; raises ManifestError, see ``parse_manifest``."""
    problems = Problems(source)
    top = Table(problems, source.data)
    _check_understood(top)
    _check_requirements(top)
    metadata = top.optional_table("metadata") or Table(problems, {}, ("metadata",))
    variables = _variables(top)
    context = _context(metadata, variables)
    components: dict[str, Component] = {}
    for table in top.tables("components"):
        component = _component(table, variables, context.manifest_version)
        if component.id in components:
            table.fault("id", "another component has this id already")
        components.setdefault(component.id, component)
    triggers = tuple(
        trigger
        for table in top.tables("triggers")
        if (trigger := _trigger(table, context, components, variables)) is not None
    )
    app = AppManifest(
        manifest_version=context.manifest_version,
        name=metadata.required_string("name", not_empty),
        version=metadata.optional_string("version") or None,
        description=metadata.optional_string("description") or "",
        authors=metadata.strings("authors") if isinstance(metadata.raw("authors"), list) else (),
        http_base=context.http_base,
        trigger_settings=context.others,
        variables=variables,
        components=tuple(components.values()),
        triggers=triggers,
    )
    problems.raise_if_any()
    return app


def _check_understood(top: Table) -> None:
    version = top.raw("spin_lock_version")
    if version is None:
        top.missing("spin_lock_version")
    elif type(version) is not int or version not in (0, 1):
        top.fault("spin_lock_version", "must be 0 or 1")
    for index, name in enumerate(top.strings("must_understand")):
        if name not in _UNDERSTOOD:
            top.element_fault("must_understand", index, "this shim does not understand it")


def _check_requirements(table: Table) -> None:
    requirements = table.optional_table("host_requirements")
    for name in requirements.names() if requirements else ():
        if name not in _REQUIREMENTS and cast(Table, requirements).raw(name) != "optional":
            cast(Table, requirements).problem(name, "the app requires it; this shim does not do it")


def _context(metadata: Table, variables: Mapping[str, Variable]) -> TriggerContext:
    """Read the settings of each trigger type."""
    context = TriggerContext(manifest_version=2 if metadata.raw("triggers") is not None else 1)
    if context.manifest_version == 2:
        types = metadata.optional_table("triggers")
        tables = types.child_tables() if types else []
    else:
        single = metadata.optional_table("trigger")
        tables = [(single.required_string("type", not_empty), single)] if single else []
    for trigger_type, table in tables:
        if trigger_type == "http":
            context.http_base = table.optional_string("base", base_fault) or "/"
        elif trigger_type == "redis":
            if context.manifest_version == 1:
                context.redis_address = literal(table.required_string("address", not_empty))
            else:
                if "address" not in table.names():
                    table.missing("address")
                context.redis_address = read_address(table, variables)
        else:
            settings = {key: table.raw(key) for key in table.names() if key != "type"}
            context.others[trigger_type] = settings
    return context


def _variables(top: Table) -> dict[str, Variable]:
    table = top.optional_table("variables")
    variables = {}
    for name, entry in table.child_tables() if table else ():
        if (fault := name_fault(name)) is not None:
            cast(Table, table).problem(name, fault)
        default = entry.optional_string("default", secret=True)
        variables[name] = Variable(
            required=default is None,
            default=default,
            secret=entry.boolean("secret"),
            description=entry.optional_string("description") or "",
        )
    return variables


def _component(table: Table, variables: Mapping[str, Variable], version: int) -> Component:
    component_id = table.required_string("id", printable_fault)
    table.label = f'{table.label} ("{component_id}")'
    metadata = table.optional_table("metadata")
    hosts, hosts_field = _hosts(metadata, variables, version)
    _check_requirements(table)
    for key in ("dependencies", "trigger_dependencies"):
        if table.optional_table(key) is not None and table.raw(key):
            table.problem(key, NO_COMPONENT_MODEL)
    return Component(
        id=component_id,
        source=_source(table),
        description=(metadata.optional_string("description") if metadata else None) or "",
        files=_files(table),
        environment=table.string_map("env", env_name_fault, env_value_fault),
        variables=read_templates(table, "config", variables),
        allowed_outbound_hosts=hosts,
        hosts_field=hosts_field,
        key_value_stores=_list(metadata, "key_value_stores"),
        sqlite_databases=_list(metadata, "databases"),
        ai_models=_list(metadata, "ai_models"),
        where=table.where,
    )


def _list(metadata: Table | None, key: str) -> tuple[str, ...]:
    return metadata.strings(key, not_empty) if metadata else ()


def _hosts(
    metadata: Table | None, variables: Mapping[str, Variable], version: int
) -> tuple[tuple[Template, ...], HostsField]:
    newer = version == 2
    hosts: tuple[Template, ...] = ()
    older: tuple[str, ...] = ()
    if metadata is not None:
        newer = newer or "allowed_outbound_hosts" in metadata.names()
        hosts = read_hosts(metadata, host_rule(variables))
        older = metadata.strings("allowed_http_hosts", http_host_fault)
    converted = convert_http_hosts(older, databases=not newer)
    return (
        hosts + tuple(map(literal, converted)),
        "allowed_outbound_hosts" if newer else "allowed_http_hosts",
    )


# Content


def _source(table: Table) -> FileSource | Content:
    source = table.required_table("source")
    if source is None:
        return FileSource("")
    path = _file_path(source)
    if path:
        return FileSource(path)
    return _content(source)


def _files(table: Table) -> tuple[FileEntry, ...]:
    entries: list[FileEntry] = []
    for file in table.tables("files", required=False):
        destination = file.required_string("path")
        path = _file_path(file)
        entry: FileEntry
        if path is not None:
            entry = FilePlacement(path or ".", destination, file.where)
        else:
            entry = FileContent(_content(file), destination, file.where)
        if destination and (fault := entry_fault(entry)) is not None:
            file.complain(fault)
        entries.append(entry)
    return tuple(entries)


def _file_path(table: Table) -> str | None:
    """Return the path of a ``file:`` source, relative to the image's root; None for no source."""
    url = table.optional_string("source")
    if url is None or table.raw("digest") is not None or table.raw("inline") is not None:
        return None
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        table.fault("source", "must be a file:// URL of the image")
        return None
    path = unquote(parts.path).strip("/")
    if ".." in path.split("/") or "\0" in path:
        table.fault("source", "must not contain `..` nor NUL")
    return path


def _content(table: Table) -> Content:
    digest = table.optional_string("digest", digest_fault)
    text = table.optional_string("inline")
    inline = None
    if text is not None:
        try:
            inline = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            table.fault("inline", "must be base64")
    if digest is None and text is None and table.raw("source") is None:
        table.complain("needs a `source`, a `digest` or `inline` content")
    return Content(digest.lower() if digest else None, inline)


# Triggers


def _trigger(
    table: Table,
    context: TriggerContext,
    components: Mapping[str, Component],
    variables: Mapping[str, Variable],
) -> Trigger | None:
    id_ = table.required_string("id")
    trigger_type = table.required_string("trigger_type", not_empty)
    dependencies: Any = table.raw("trigger_dependencies")
    if dependencies:
        table.problem("trigger_dependencies", NO_COMPONENT_MODEL)
    config = table.required_table("trigger_config")
    if config is None:
        return None
    config.label = f'{table.label} ("{id_}").trigger_config'
    component = config.optional_string("component")
    if component is not None and component not in components:
        hint = nearest(component, components, "components")
        table.complain(f"there is no component {shown(component)}; {hint}")
    return read_trigger(config, trigger_type, id_, component, context, variables)
