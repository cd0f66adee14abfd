"""Manifest version 1: ``spin_manifest_version = "1"``, in older files ``spin_version = "1"``.

The app has one trigger, and each component says how it hangs on it. Beyond what Spin 1.5 knows,
``allowed_outbound_hosts`` is read too, which Spin 2 accepts in files of this version.
Sources: Spin 1.5 crates/loader/src/{local/config,common,validation}.rs; Spin 2.0
crates/manifest/src/schema/v1.rs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, cast
from urllib.parse import urlsplit

from containerd_shim_spin_v1.files import entry_fault
from containerd_shim_spin_v1.globs import glob_fault
from containerd_shim_spin_v1.manifest_model import (
    WAGI_ARGV,
    WAGI_ENTRYPOINT,
    AppManifest,
    AppTrigger,
    Build,
    Component,
    ComponentTrigger,
    Executor,
    FileEntry,
    FileGlob,
    FilePlacement,
    FileSource,
    HttpComponentTrigger,
    HttpTrigger,
    PluginComponentTrigger,
    PluginTrigger,
    RedisComponentTrigger,
    RedisTrigger,
    UrlSource,
    Variable,
)
from containerd_shim_spin_v1.templates import Template, TemplateError, name_fault, parse_template
from containerd_shim_spin_v1.toml_reader import Problems, Table, nearest, type_name
from containerd_shim_spin_v1.toml_source import TomlSource

_VERSION_KEYS = ("spin_manifest_version", "spin_version")


def parse_v1(source: TomlSource) -> AppManifest:
    """Read a manifest of version 1; raises ManifestError, see ``parse_manifest``."""
    problems = Problems(source)
    top = Table(problems, source.data)
    _check_version(top)
    trigger = _app_trigger(top)
    variables = _variables(top)
    app = AppManifest(
        manifest_version=1,
        name=top.required_string("name", _not_empty),
        version=top.required_string("version"),
        description=top.optional_string("description") or "",
        authors=top.strings("authors"),
        namespace=top.optional_string("namespace"),
        trigger=trigger,
        variables=variables,
        components=_components(top, trigger, variables),
    )
    top.done()
    problems.raise_if_any()
    return app


def _check_version(top: Table) -> None:
    given = [key for key in _VERSION_KEYS if top.raw(key) is not None]
    for key in given[:1]:
        value = top.raw(key)
        if value != "1" and not (type(value) is int and value == 1):
            top.fault(key, 'must be "1"')
    for key in given[1:]:
        top.fault(key, f"the version is given already, as `{given[0]}`")
    if not given:
        top.missing(_VERSION_KEYS[0])


def _app_trigger(top: Table) -> AppTrigger:
    table = top.required_table("trigger")
    if table is None:
        return PluginTrigger("", {})
    trigger_type = table.required_string("type", _not_empty)
    trigger: AppTrigger
    if trigger_type == "http":
        trigger = HttpTrigger(table.required_string("base", _base_fault), table.where)
    elif trigger_type == "redis":
        trigger = RedisTrigger(table.required_string("address", _not_empty), table.where)
    else:
        settings = {key: table.raw(key) for key in table.names() if key != "type"}
        trigger = PluginTrigger(trigger_type, settings, table.where)
    table.done()
    return trigger


def _variables(top: Table) -> dict[str, Variable]:
    table = top.optional_table("variables")
    if table is None:
        return {}
    variables = {}
    for name in table.names():
        if (fault := name_fault(name)) is not None:
            table.problem(name, fault)
        entry = table.optional_table(name)
        if entry is not None:
            variables[name] = _variable(table, name, entry)
    return variables


def _variable(table: Table, name: str, entry: Table) -> Variable:
    variable = Variable(
        required=entry.boolean("required"),
        default=entry.optional_string("default", secret=True),
        secret=entry.boolean("secret"),
    )
    if variable.required == (entry.raw("default") is not None):
        table.problem(name, "must have either `required = true` or a `default`")
    entry.done()
    return variable


def _components(
    top: Table, trigger: AppTrigger, variables: Mapping[str, Variable]
) -> tuple[Component, ...]:
    components = []
    ids: dict[str, str] = {}
    for table in top.tables("component"):
        component_id = table.required_string("id", _id_fault)
        label = table.label
        if component_id:
            table.label = f'{label} ("{component_id}")'
            if component_id in ids:
                table.fault("id", f"{ids[component_id]} has this id already")
            ids.setdefault(component_id, label)
        components.append(_component(table, component_id, trigger, variables))
    return tuple(components)


def _component(
    table: Table, component_id: str, trigger: AppTrigger, variables: Mapping[str, Variable]
) -> Component:
    component = Component(
        id=component_id,
        source=_source(table),
        trigger=_component_trigger(table, trigger),
        description=table.optional_string("description") or "",
        files=_files(table),
        exclude_files=table.strings("exclude_files", glob_fault),
        environment=table.string_map("environment", _env_name_fault, _env_value_fault),
        config=_config(table, variables),
        allowed_http_hosts=table.strings("allowed_http_hosts", _not_empty),
        allowed_outbound_hosts=(
            table.strings("allowed_outbound_hosts", _not_empty)
            if "allowed_outbound_hosts" in table.names()
            else table.raw("allowed_outbound_hosts")
        ),
        key_value_stores=table.strings("key_value_stores", _label_fault),
        sqlite_databases=table.strings("sqlite_databases", _not_empty),
        ai_models=table.strings("ai_models", _not_empty),
        build=_build(table),
        where=table.where,
    )
    table.done()
    return component


def _source(table: Table) -> FileSource | UrlSource:
    value = table.raw("source")
    if isinstance(value, dict):
        remote = cast(Table, table.optional_table("source"))
        url = remote.required_string("url", _url_fault)
        digest = remote.required_string("digest", _digest_fault)
        remote.done()
        return UrlSource(url, digest.removeprefix("sha256:").lower())
    if value is not None and not isinstance(value, str):
        table.fault("source", f"must be a path or {{ url, digest }}, not {type_name(value)}")
        return FileSource("")
    return FileSource(table.required_string("source", _path_fault))


def _files(table: Table) -> tuple[FileEntry, ...]:
    values = table.raw("files")
    if values is None:
        return ()
    if not isinstance(values, list):
        table.fault("files", f"must be an array, not {type_name(values)}")
        return ()
    entries: list[FileEntry] = []
    for index, value in enumerate(values):
        where = table.where_element("files", index)
        entry: FileEntry
        if isinstance(value, str):
            entry = FileGlob(value, where)
        elif isinstance(value, dict):
            placement = table.element_table("files", index)
            source = placement.required_string("source")
            destination = placement.required_string("destination")
            placement.done()
            if not source or not destination:
                continue
            entry = FilePlacement(source, destination, where)
        else:
            rule = f"must be a pattern or {{ source, destination }}, not {type_name(value)}"
            table.element_fault("files", index, rule)
            continue
        if (fault := entry_fault(entry)) is not None:
            table.element_fault("files", index, fault)
        entries.append(entry)
    return tuple(entries)


def _config(table: Table, variables: Mapping[str, Variable]) -> dict[str, Template]:
    def template_fault(text: str) -> str | None:
        try:
            unknown = [name for name in parse_template(text).variables if name not in variables]
        except TemplateError as exc:
            return str(exc)
        if not unknown:
            return None
        hint = nearest(unknown[0], variables, "variables")
        return f"variable `{unknown[0]}` is not declared; {hint}"

    config = table.string_map("config", name_fault, template_fault)
    # A faulty one is reported above and never used.
    return {
        key: parse_template(text) for key, text in config.items() if template_fault(text) is None
    }


def _build(table: Table) -> Build | None:
    build = table.optional_table("build")
    if build is None:
        return None
    result = Build(
        command=build.required_string("command"),
        workdir=build.optional_string("workdir"),
        watch=build.strings("watch"),
    )
    build.done()
    return result


def _component_trigger(table: Table, app_trigger: AppTrigger) -> ComponentTrigger:
    trigger = table.required_table("trigger")
    if trigger is None:
        return PluginComponentTrigger({})
    result: ComponentTrigger
    match app_trigger:
        case HttpTrigger():
            route = trigger.required_string("route", route_fault)
            result = HttpComponentTrigger(route, _executor(trigger, ("spin", "wagi")))
        case RedisTrigger():
            channel = trigger.required_string("channel", _not_empty)
            result = RedisComponentTrigger(channel, _executor(trigger, ("spin",)))
        case PluginTrigger():
            return PluginComponentTrigger({key: trigger.raw(key) for key in trigger.names()})
    trigger.done()
    return result


def _executor(trigger: Table, types: tuple[str, ...]) -> Executor:
    table = trigger.optional_table("executor")
    if table is None:
        return Executor()

    def type_fault(text: str) -> str | None:
        return None if text in types else f"unknown executor; {nearest(text, types, 'executors')}"

    executor_type = table.required_string("type", type_fault)
    if executor_type != "wagi":
        executor = Executor()
    else:
        entrypoint = table.optional_string("entrypoint", _not_empty)
        argv = table.optional_string("argv")
        executor = Executor(
            cast(Literal["wagi"], executor_type),
            WAGI_ENTRYPOINT if entrypoint is None else entrypoint,
            WAGI_ARGV if argv is None else argv,
        )
    if executor_type in types:  # of an unknown one we cannot say which fields it has
        table.done()
    return executor


def route_fault(route: str) -> str | None:
    """Return what is wrong with a route, or None.

    A missing ``/`` in front is put there by the router, as Spin 1.2.1 and later do. Refused is
    what no request path can look like.
    """
    if (fault := _path_characters_fault(route)) is not None:
        return fault
    if "..." in route.removesuffix("/").split("/")[:-1]:
        return '"..." is a wildcard only as the last part of a route'
    return None


def _base_fault(base: str) -> str | None:
    if base and not base.startswith("/"):
        return f'must start with "/"; did you mean "/{base}"?'
    if "..." in base.split("/"):
        return '"..." is a wildcard only as the last part of a route'
    return _path_characters_fault(base)


def _path_characters_fault(path: str) -> str | None:
    invalid = re.search(r"[^!-~]|[?#]", path)
    if invalid is None:
        return None
    if invalid.group() in "?#":
        return f"must be a path only, without `{invalid.group()}`"
    return "a character that no request path can hold must be percent-encoded"


def _not_empty(text: str) -> str | None:
    return None if text else "must not be empty"


def _id_fault(text: str) -> str | None:
    if not text or not text.isprintable():
        return "must be printable text"
    return None


def _path_fault(path: str) -> str | None:
    if not path or "\0" in path:
        return "must be the path of a .wasm file"
    return None


def _url_fault(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme == "https" and parts.hostname
    except ValueError:
        valid = False
    return None if valid else "must be an https:// URL"


def _digest_fault(digest: str) -> str | None:
    if re.fullmatch(r"sha256:[0-9a-fA-F]{64}", digest):
        return None
    return "must be `sha256:` and 64 hexadecimal digits"


def _env_name_fault(name: str) -> str | None:
    if not name or "=" in name or "\0" in name:
        return "a variable's name must not be empty nor contain `=` or NUL"
    return None


def _env_value_fault(value: str) -> str | None:
    return "must not contain a NUL" if "\0" in value else None


def _label_fault(label: str) -> str | None:
    """The rule of component-model labels, with ``_`` in place of ``-``."""
    if all(re.fullmatch(r"[a-z][a-z0-9]*|[A-Z][A-Z0-9]*", word) for word in label.split("_")):
        return None
    return (
        "must be words of letters and digits that start with a letter, each all lower or all upper "
        "case, joined by single underscores"
    )
