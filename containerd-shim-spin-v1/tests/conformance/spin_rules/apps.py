"""Manifests of apps whose components say what they were given."""

from __future__ import annotations

import json
from collections.abc import Sequence

WAGI = 'executor = { type = "wagi" }'


def manifest_v1(
    base: str, routes: Sequence[str], *, wagi: bool = False, executor: str = WAGI
) -> str:
    """Return an app of version 1 with a component for each route: ``c0``, ``c1`` …

    executor: the line of the trigger that says which, with ``wagi``.
    """
    parts = [
        'spin_manifest_version = "1"\nname = "rules"\nversion = "1.2.3"\n'
        f'trigger = {{ type = "http", base = {json.dumps(base)} }}\n'
    ]
    for index, route in enumerate(routes):
        parts.append(
            f'[[component]]\nid = "c{index}"\n{_module(index, wagi)}'
            f"[component.trigger]\nroute = {json.dumps(route)}\n{executor if wagi else ''}\n"
        )
    return "".join(parts)


def manifest_v2(
    base: str, routes: Sequence[str], *, wagi: bool = False, executor: str = WAGI, more: str = ""
) -> str:
    """Return the same as version 2. more: TOML for the end."""
    parts = [
        'spin_manifest_version = 2\n[application]\nname = "rules"\nversion = "1.2.3"\n'
        f"[application.trigger.http]\nbase = {json.dumps(base)}\n"
    ]
    for index, route in enumerate(routes):
        parts.append(
            f'[[trigger.http]]\nroute = {json.dumps(route)}\ncomponent = "c{index}"\n'
            f"{executor if wagi else ''}\n[component.c{index}]\n{_module(index, wagi)}"
        )
    return "".join([*parts, more])


def _module(index: int, wagi: bool) -> str:
    environment = f'NAME = "c{index}"' + (', MODE = "mirror"' if wagi else "")
    guest = "wagi_probe" if wagi else "mirror"
    return f'source = "{guest}.wasm"\nenvironment = {{ {environment} }}\n'
