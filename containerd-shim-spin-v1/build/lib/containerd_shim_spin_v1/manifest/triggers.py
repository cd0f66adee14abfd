"""Triggers as version 2 and the locked form have them: one table each, of a type given outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from containerd_shim_spin_v1.manifest.fields import (
    plain,
    read_executor,
    read_route,
    read_static_response,
)
from containerd_shim_spin_v1.manifest.model import (
    WAGI_ENTRYPOINT,
    CommandTrigger,
    HttpTrigger,
    OtherTrigger,
    RedisTrigger,
    Trigger,
    Variable,
)
from containerd_shim_spin_v1.manifest.rules import (
    address_rule,
    not_empty,
    route_fault,
    route_v2_fault,
)
from containerd_shim_spin_v1.manifest.templates import Template, literal, parse_template
from containerd_shimkit.text.toml_reader import Table


@dataclass(slots=True)
class TriggerContext:
    """What the app says for all triggers of a type."""

    http_base: str = "/"
    redis_address: Template | None = None
    others: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    manifest_version: int = 2


def read_trigger(
    table: Table,
    trigger_type: str,
    id_: str,
    component: str | None,
    context: TriggerContext,
    variables: Mapping[str, Variable],
) -> Trigger:
    """Read the settings of one trigger; ``id`` and ``component`` were read before."""
    trigger: Trigger
    match trigger_type:
        case "http":
            trigger = _http(table, id_, component, context)
        case "redis":
            trigger = RedisTrigger(
                id=id_,
                component=_required(table, component),
                channel=table.required_string("channel", not_empty),
                address=_address(table, context, variables),
                where=table.where,
            )
            if context.manifest_version == 1:
                table.raw("executor")  # of one type only
        case "command":
            trigger = CommandTrigger(
                id=id_, component=_required(table, component), where=table.where
            )
        case _:
            settings = {key: table.raw(key) for key in table.names()}
            return OtherTrigger(
                type=trigger_type,
                id=id_,
                component=component,
                settings=plain(settings, "id", "component", "components", "dependencies"),
                where=table.where,
            )
    table.done()
    return trigger


def _http(table: Table, id_: str, component: str | None, context: TriggerContext) -> HttpTrigger:
    response = read_static_response(table)
    if (component is None) == (response is None):
        problem = "has neither" if component is None else "has both"
        table.complain(f"needs either a `component` or a `static_response`, {problem}")
    version_2 = context.manifest_version == 2
    return HttpTrigger(
        id=id_,
        component=component,
        route=read_route(table, route_v2_fault if version_2 else route_fault),
        executor=read_executor(table, _entrypoint_fault if version_2 else not_empty),
        static_response=response,
        where=table.where,
    )


def _required(table: Table, component: str | None) -> str:
    if component is None:
        table.missing("component")
    return component or ""


def read_address(table: Table, variables: Mapping[str, Variable]) -> Template | None:
    """Read a server's ``address``, a template; None if there is none."""
    rule = address_rule(variables)
    address = table.optional_string("address", rule)
    if address is None:
        return None
    return parse_template(address) if rule(address) is None else literal("")


def _address(table: Table, context: TriggerContext, variables: Mapping[str, Variable]) -> Template:
    address = read_address(table, variables) or context.redis_address
    if address is None and table.raw("address") is None:
        table.complain("needs an `address`, here or in [application.trigger.redis]")
    return address or literal("")


def _entrypoint_fault(text: str) -> str | None:
    if text == WAGI_ENTRYPOINT:
        return None
    return f"version 2 calls `{WAGI_ENTRYPOINT}` only; leave this out"
