"""Permission to connect, with and without variables."""

from __future__ import annotations

import asyncio

import pytest

from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.outbound.access import DestinationNotAllowedError, OutboundAccess
from containerd_shim_spin_v1.variables.values import ProviderError, Variables, environment_providers

MANIFEST = """
spin_manifest_version = 2
[application]
name = "a"
[variables]
cache = { required = true }
[[trigger.http]]
route = "/"
component = "c"
[component.c]
source = "c.wasm"
allowed_outbound_hosts = ["redis://{{ cache }}:6380", "https://example.com", "http://self"]
"""


def access(**env: str) -> OutboundAccess:
    app = parse_manifest(MANIFEST, "/spin.toml")
    variables = Variables(app, environment_providers(2, env, {}))
    return OutboundAccess(app.component("c"), variables)


def test_what_the_manifest_allows() -> None:
    async def main() -> None:
        component = access(SPIN_VARIABLE_CACHE="cache.local")
        await component.check("redis", "cache.local", 6380)
        await component.check("https", "example.com")
        await component.check_self("http", "https")
        with pytest.raises(DestinationNotAllowedError) as caught:
            await component.check("redis", "other.local", 6379)
        assert str(caught.value) == (
            "component 'c' may not connect to redis://other.local: "
            'it needs allowed_outbound_hosts = ["redis://other.local"] in the manifest'
        )

    asyncio.run(main())


def test_a_variable_without_value() -> None:
    with pytest.raises(ProviderError, match="'cache'"):
        asyncio.run(access().check("https", "example.com"))
