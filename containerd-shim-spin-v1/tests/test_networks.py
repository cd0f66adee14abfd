"""Blocked networks: which addresses they hold, and names that lead there."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
import uvloop

from containerd_shim_spin_v1.host.services import networks_of
from containerd_shim_spin_v1.runtime_config.reader import parse_runtime_config
from containerd_shimkit.http_client import networks
from containerd_shimkit.http_client.networks import BlockedNetworkError, NameLookupError, Networks

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def blocking(*blocked: str) -> Networks:
    listed = ", ".join(f'"{network}"' for network in blocked)
    return networks_of(parse_runtime_config(f"outbound_networking.block_networks = [{listed}]"))


@pytest.mark.parametrize(
    ("network", "address", "blocked"),
    [
        ("123.123.0.0/16", "123.123.123.123", True),
        ("123.123.0.0/16", "123.100.100.100", False),
        ("2001:4860::/32", "2001:4860::8888", True),
        ("2001:4860::/32", "2a00:4860::8888", False),
        ("1.1.1.1/32", "1.1.1.1", True),
        ("1.1.1.1/32", "1.1.1.2", False),
        # IPv6 that is IPv4 in truth
        ("123.123.0.0/16", "::ffff:123.123.1.1", True),
        ("123.123.0.0/16", "::123.123.1.1", True),
        ("123.123.0.0/16", "::ffff:0:123.123.1.1", True),
        ("123.123.0.0/16", "64:ff9b::123.123.1.1", True),
        ("123.123.0.0/16", "2002:7b7b:101::", True),
        ("123.123.0.0/16", "::ffff:123.124.1.1", False),
        ("0.0.0.0/0", "8.8.8.8", True),
        ("0.0.0.0/0", "2600::1", False),
        ("::/0", "2600::1", True),
    ],
)
def test_networks_that_are_listed(network: str, address: str, blocked: bool) -> None:
    assert blocking(network).blocks(ipaddress.ip_address(address)) is blocked


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.10.10.10",
        "100.64.1.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.31.0.1",
        "192.0.0.1",
        "192.168.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:10.10.10.10",
        "::10.1.2.3",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "2002:a00:1::",
        "fc00::f00d",
        "fd12::1",
        "fe80::1",
        "fe80::1%1",
        "ff02::1",
    ],
)
def test_private_addresses(address: str) -> None:
    assert blocking("private").blocks(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "123.123.123.123", "100.128.0.1", "172.32.0.1", "2600::beef", "2a00::1"]
)
def test_addresses_for_the_whole_internet_are_not_private(address: str) -> None:
    assert not blocking("private").blocks(ipaddress.ip_address(address))


def test_nothing_is_blocked_by_default() -> None:
    assert not Networks().active
    assert not Networks().blocks(ipaddress.ip_address("127.0.0.1"))
    assert blocking("private").active
    assert blocking("1.1.1.1/32").active


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "0x7f.1", "2130706433"])
def test_a_host_in_a_blocked_network(host: str) -> None:
    with pytest.raises(BlockedNetworkError) as caught:
        run(blocking("private").resolve(host, 80))
    assert str(caught.value) == (
        f"{host} is in a network that block_networks of the runtime configuration blocks"
    )


def test_addresses_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look_up(_host: str, _port: int) -> list[str]:
        return ["10.0.0.1", "8.8.8.8", "fd00::1", "2600::1"]

    # A name server of our own would need port 53 and /etc/resolv.conf.
    monkeypatch.setattr(networks, "look_up", look_up)
    assert run(blocking("private").resolve("both.example", 80)) == ["8.8.8.8", "2600::1"]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example", "a..b", ""])
def test_a_name_that_leads_nowhere(host: str) -> None:
    with pytest.raises(NameLookupError, match="cannot find the address of "):
        run(blocking("private").resolve(host, 80))
