"""Selective deployment: keeping some of an app's components."""

from __future__ import annotations

from dataclasses import replace

from containerd_shim_spin_v1.manifest.model import AppManifest, Component
from containerd_shim_spin_v1.outbound.allowed_hosts import CHAINING_SUFFIX, Below, parse_entry
from containerd_shimkit.environment import SettingError
from containerd_shimkit.text.toml_reader import nearest

SETTING = "SPIN_COMPONENTS_TO_RETAIN"


def retain_components(app: AppManifest, wanted: str) -> AppManifest:
    """Return ``app`` with the components in ``wanted`` and their triggers only.

    wanted: ids with commas between; all are kept if there is none.
    Raises SettingError for an id that no component has, and if a component that stays may call
    one that goes.
    Source: Spin 3.6 crates/app ``retain_components``,
    crates/factor-outbound-networking ``validate_service_chaining_for_components``.
    """
    ids = [id_ for part in wanted.split(",") if (id_ := part.strip())]
    if not ids:
        return app
    known = [component.id for component in app.components]
    for id_ in ids:
        if id_ not in known:
            hint = nearest(id_, known, "components")
            raise SettingError(f"{SETTING}: the app has no component {id_!r}; {hint}")
    dropped = [id_ for id_ in known if id_ not in ids]
    components = tuple(component for component in app.components if component.id in ids)
    for component in components if dropped else ():
        _check_calls(component, dropped)
    triggers = tuple(
        trigger
        for trigger in app.triggers
        if trigger.component is not None and trigger.component in ids
    )
    return replace(app, components=components, triggers=triggers)


def _check_calls(component: Component, dropped: list[str]) -> None:
    """Refuse a component that may call one of ``dropped``; hosts with templates are not known."""
    for template in component.allowed_outbound_hosts:
        if template.variables:
            continue
        rule = parse_entry(template.render({})).host
        if rule == Below(CHAINING_SUFFIX):
            raise SettingError(
                f"{SETTING}: component {component.id!r} may call every other "
                f"(*{CHAINING_SUFFIX}), and not all are retained"
            )
        called = str(rule).removesuffix(CHAINING_SUFFIX)
        if called != rule and called in (id_.lower() for id_ in dropped):
            raise SettingError(
                f"{SETTING}: component {component.id!r} may call {called!r} ({rule}), which is not "
                "retained"
            )
