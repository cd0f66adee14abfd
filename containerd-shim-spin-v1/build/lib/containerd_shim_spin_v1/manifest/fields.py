"""The parts of a manifest that are the same in every version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from containerd_shim_spin_v1.files.plan import entry_fault
from containerd_shim_spin_v1.manifest.model import (
    WAGI_ARGV,
    WAGI_ENTRYPOINT,
    Build,
    Executor,
    FileEntry,
    FileGlob,
    FilePlacement,
    FileSource,
    RegistrySource,
    StaticResponse,
    UrlSource,
    Variable,
)
from containerd_shim_spin_v1.manifest.rules import (
    digest_fault,
    not_empty,
    package_fault,
    path_fault,
    template_rule,
    url_fault,
)
from containerd_shim_spin_v1.manifest.templates import Template, name_fault, parse_template
from containerd_shimkit.text.toml_reader import Rule, Table, nearest, type_name


def read_variables(top: Table) -> dict[str, Variable]:
    """Read ``[variables]``."""
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
        description=entry.optional_string("description") or "",
    )
    if variable.required == (entry.raw("default") is not None):
        table.problem(name, "must have either `required = true` or a `default`")
    entry.done()
    return variable


def read_source(table: Table, *, registries: bool) -> FileSource | UrlSource | RegistrySource:
    """Read a component's ``source``.  registries: whether a package may be one."""
    value = table.raw("source")
    forms = "{ url, digest }" + (" or { registry, package, version }" if registries else "")
    if value is not None and not isinstance(value, str | dict):
        table.fault("source", f"must be a path or {forms}, not {type_name(value)}")
        return FileSource("")
    if not isinstance(value, dict):
        return FileSource(table.required_string("source", path_fault))
    remote = cast(Table, table.optional_table("source"))
    if registries and not {"package", "version", "registry"}.isdisjoint(value):
        source = RegistrySource(
            package=remote.required_string("package", package_fault),
            version=remote.required_string("version", not_empty),
            registry=remote.optional_string("registry", not_empty),
        )
        remote.done()
        return source
    url = remote.required_string("url", url_fault)
    digest = remote.required_string("digest", digest_fault)
    remote.done()
    return UrlSource(url, digest.removeprefix("sha256:").lower())


def read_files(table: Table) -> tuple[FileEntry, ...]:
    """Read a component's ``files``."""
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


def read_templates(
    table: Table, key: str, variables: Mapping[str, Variable]
) -> dict[str, Template]:
    """Read a table of templates: ``config`` in version 1, ``variables`` in version 2."""
    rule = template_rule(variables)
    values = table.string_map(key, name_fault, rule)
    # A faulty one is reported already and never used.
    return {name: parse_template(text) for name, text in values.items() if rule(text) is None}


def read_hosts(table: Table, rule: Rule) -> tuple[Template, ...]:
    """Read ``allowed_outbound_hosts``."""
    return tuple(map(parse_template, table.strings("allowed_outbound_hosts", rule)))


def read_build(table: Table) -> Build | None:
    """Read ``build``, of no use to us."""
    build = table.optional_table("build")
    if build is None:
        return None
    result = Build(
        commands=build.required_strings_or_one("command"),
        workdir=build.optional_string("workdir"),
        watch=build.strings("watch"),
    )
    build.done()
    return result


def read_executor(trigger: Table, entrypoint_fault: Rule = not_empty) -> Executor:
    """Read the ``executor`` of an HTTP trigger."""
    table = trigger.optional_table("executor")
    if table is None:
        return Executor()
    types = ("spin", "http", "wagi")

    def type_fault(text: str) -> str | None:
        if text.startswith("wasip3"):
            return "is for WebAssembly components, which are not supported yet, only core modules"
        return None if text in types else f"unknown executor; {nearest(text, types, 'executors')}"

    executor_type = table.required_string("type", type_fault)
    if executor_type != "wagi":  # `http` is what version 2 calls `spin`
        executor = Executor()
    else:
        entrypoint = table.optional_string("entrypoint", entrypoint_fault)
        argv = table.optional_string("argv")
        executor = Executor(
            cast(Literal["wagi"], executor_type),
            WAGI_ENTRYPOINT if entrypoint is None else entrypoint,
            WAGI_ARGV if argv is None else argv,
        )
    if executor_type in types:  # of an unknown one we cannot say which fields it has
        table.done()
    return executor


def read_route(trigger: Table, rule: Callable[[str], str | None]) -> str | None:
    """Read ``route``; None is a private endpoint."""
    value = trigger.raw("route")
    if isinstance(value, dict):
        table = cast(Table, trigger.optional_table("route"))
        if not table.boolean("private"):
            trigger.fault("route", "must be a path or { private = true }")
        table.done()
        return None
    if value is not None and not isinstance(value, str):
        trigger.fault("route", f"must be a path or {{ private = true }}, not {type_name(value)}")
        return ""
    return trigger.required_string("route", rule)


def read_static_response(trigger: Table) -> StaticResponse | None:
    """Read the answer of a trigger without component."""
    table = trigger.optional_table("static_response")
    if table is None:
        return None
    status = table.integer("status_code", 200, 599)
    response = StaticResponse(
        status=200 if status is None else status,
        headers=table.string_map("headers", _header_name_fault, _header_value_fault),
        body=table.optional_string("body") or "",
    )
    table.done()
    return response


def _header_name_fault(name: str) -> str | None:
    if name and all(c.isascii() and (c.isalnum() or c in "!#$%&'*+-.^_`|~") for c in name):
        return None
    return "is no name of a header"


def _header_value_fault(value: str) -> str | None:
    if value.isascii() and value.isprintable() and value == value.strip():
        return None
    return "must be printable ASCII without space around it"


def plain(values: dict[str, Any], *known: str) -> dict[str, Any]:
    """Return the settings that no field of the model holds."""
    return {key: value for key, value in values.items() if key not in known}
