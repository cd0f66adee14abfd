from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_spin_v1.manifest.model import HostsField
from containerd_shim_spin_v1.outbound.allowed_hosts import (
    AllowedHosts,
    denial,
    entry_fault,
    entry_for,
)
from containerd_shim_spin_v1.outbound.allowed_http_hosts import convert_http_hosts, http_host_fault
from containerd_shimkit.hosts import HostError

ALLOWED = [
    # entry, scheme, host, port (None: the scheme's own), allowed
    pytest.param("http://h", "http", "h", None, True, id="scheme's port"),
    pytest.param("http://h", "http", "h", 80, True, id="scheme's port said"),
    pytest.param("http://h", "http", "h", 81, False, id="other port"),
    pytest.param("http://h", "https", "h", None, False, id="other scheme"),
    pytest.param("http://h", "http", "i", None, False, id="other host"),
    pytest.param("https://h", "https", "h", 443, True, id="https"),
    pytest.param("redis://h", "redis", "h", 6379, True, id="redis"),
    pytest.param("mysql://h", "mysql", "h", 3306, True, id="mysql"),
    pytest.param("postgres://h", "postgres", "h", 5432, True, id="postgres"),
    pytest.param("mqtt://h", "mqtt", "h", 1883, True, id="mqtt"),
    pytest.param("http://h:8080", "http", "h", 8080, True, id="port"),
    pytest.param("http://h:8080", "http", "h", None, False, id="port, not the scheme's"),
    pytest.param("http://h:", "http", "h", 80, True, id="colon without port"),
    pytest.param("http://h:8080/", "http", "h", 8080, True, id="port and slash"),
    pytest.param("http://h/", "http", "h", None, True, id="slash"),
    pytest.param(" http://h ", "http", "h", None, True, id="space around"),
    pytest.param("http://h:80..82", "http", "h", 80, True, id="first of a range"),
    pytest.param("http://h:80..82", "http", "h", 81, True, id="in a range"),
    pytest.param("http://h:80..82", "http", "h", 82, False, id="end of a range is not in it"),
    pytest.param("http://h:*", "http", "h", 65535, True, id="any port"),
    pytest.param("*://h:80", "redis", "h", 80, True, id="any scheme"),
    pytest.param("*://h:80", "redis", "h", None, False, id="any scheme, port of the asked one"),
    pytest.param("tcp://h:9", "tcp", "h", None, False, id="scheme without port of its own"),
    pytest.param("HTTP://h", "http", "h", None, True, id="scheme in capitals"),
    pytest.param("*://*:*", "udp", "::1", 1, True, id="everything"),
    pytest.param("http://*", "http", "a.b", None, True, id="any host"),
    pytest.param("http://*", "http", "a.b", 81, False, id="any host, one port"),
    pytest.param("http://*.e.com", "http", "a.e.com", None, True, id="below a name"),
    pytest.param("http://*.e.com", "http", "a.b.e.com", None, True, id="far below a name"),
    pytest.param("http://*.e.com", "http", "e.com", None, False, id="not the name itself"),
    pytest.param("http://*.e.com", "http", "ae.com", None, False, id="below ends at a dot"),
    pytest.param("http://*.E.com:81", "http", "a.e.COM", 81, True, id="below, case, port"),
    pytest.param("http://E.com", "http", "e.COM", None, True, id="case"),
    pytest.param("http://bücher.de", "http", "xn--bcher-kva.de", None, True, id="IDNA"),
    pytest.param("http://*", "http", "\u2100.de", None, False, id="IDNA: a character that is a/c"),
    pytest.param("http://127.0.0.1", "http", "127.0.0.1", None, True, id="IPv4"),
    pytest.param("http://127.0.0.1", "http", "0x7f.1", None, True, id="IPv4 written differently"),
    pytest.param("http://127.0.0.1", "http", "localhost", None, False, id="no name is looked up"),
    pytest.param("http://[::1]", "http", "::1", None, True, id="IPv6"),
    pytest.param("http://[::1]", "http", "[0:0::1]", None, True, id="IPv6 written differently"),
    pytest.param("http://[::1]:81", "http", "[::1]", 81, True, id="IPv6 and port"),
    pytest.param("http://[::1]:*", "http", "[::1]", 9, True, id="IPv6 and any port"),
    pytest.param("http://[::1]:8..9", "http", "[::1]", 8, True, id="IPv6 and range"),
    pytest.param("http://[::1]", "http", "::2", None, False, id="other IPv6"),
    pytest.param("*://10.1.2.3/8:5", "tcp", "10.9.9.9", 5, True, id="network, bits below cut"),
    pytest.param("*://10.0.0.0/8:5", "tcp", "11.0.0.0", 5, False, id="outside of the network"),
    pytest.param("http://10.0.0.0/8", "http", "10.0.0.1", None, True, id="network, scheme's port"),
    pytest.param("http://10.0.0.0/8", "http", "ten.example", None, False, id="name in a network"),
    pytest.param("http://2001:db8::/32", "http", "2001:db8:1::1", None, True, id="IPv6 network"),
    pytest.param("http://2001:db8::/32:8", "http", "2001:db8::1", 8, True, id="IPv6 net, port"),
    pytest.param("http://2001:db8::/32", "http", "10.0.0.1", None, False, id="other family"),
    pytest.param("http://self", "http", "self", None, False, id="self is no host"),
    pytest.param("http://*", "http", "a b", None, False, id="no host at all"),
    pytest.param("http://*", "http", "[::1%eth0]", None, False, id="address with a zone"),
    pytest.param("http://*", "http", "1.2.3.999", None, False, id="no address"),
    pytest.param("http://*", "http", "", None, False, id="empty host"),
]


@pytest.mark.parametrize(("entry", "scheme", "host", "port", "allowed"), ALLOWED)
def test_allows(entry: str, scheme: str, host: str, port: int | None, allowed: bool) -> None:
    assert AllowedHosts.parse([entry]).allows(scheme, host, port) is allowed


def test_any_of_several_entries_allows() -> None:
    hosts = AllowedHosts.parse(["http://a", "redis://b"])
    assert hosts.allows("redis", "b")
    assert not hosts.allows("redis", "a")
    assert not AllowedHosts.parse([]).allows("http", "a")


@pytest.mark.parametrize(
    ("entry", "schemes", "allowed"),
    [
        ("http://self", ("http", "https"), True),
        ("https://self", ("http",), False),
        ("http://self.alt", ("http",), True),
        ("*://self:*", ("http",), True),
        ("http://*", ("http",), True),
        ("http://*.self", ("http",), False),
        ("http://h", ("http",), False),
    ],
)
def test_allows_self(entry: str, schemes: tuple[str, ...], allowed: bool) -> None:
    assert AllowedHosts.parse([entry]).allows_self(*schemes) is allowed


def test_chaining_wildcard_stands_for_the_components() -> None:
    hosts = AllowedHosts.parse(["http://*.spin.internal"], ["one", "TWO"])
    assert hosts.allows("http", "one.spin.internal")
    assert hosts.allows("http", "two.spin.internal")
    assert not hosts.allows("http", "three.spin.internal")
    assert not hosts.allows("http", "a.one.spin.internal")


def test_hosts_in_other_letters_are_read_where_nothing_can_be_imported() -> None:
    code = """
import sys
from containerd_shimkit.hosts import parse_host
sys.meta_path.clear()
print(parse_host("b\\xfccher.example"))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "xn--bcher-kva.example\n"


FAULTS = [
    ("", "must be scheme://host[:port]"),
    ("*", "did you mean `*://*:*`"),
    ("example.com", "did you mean `https://example.com`?"),
    ("insecure:allow-all", "all networks are `*://*:*`"),
    ("[::1]", "must be scheme://host[:port]"),
    ("ht-tp://h", "the scheme `ht-tp` must be letters only, or `*`"),
    ("{http,https}://h", "lists of schemes"),
    ("http://{a,b}", "lists of hosts"),
    ("http://h:{1,2}", "lists of ports"),
    ("tcp://h", "needs a port: scheme `tcp` has none"),
    ("*://h", "needs a port"),
    ("http://h:x", "the port `x` must be"),
    ("http://h:99999", "the port `99999` must be"),
    ("http://h:80..", "the port `80..` must be"),
    ("http://h:80..70000", "must be 0 to 65535"),
    ("http://h:8O", "the port `8O`"),
    ("http://h:80:90", "no host"),
    ("http://h/p", "must not have a path"),
    ("http://h//", "must not have a path"),
    ("http://h:80/p", "must not have a path"),
    ("http://*.e.com/p", "must not have a path"),
    ("http://10.0.0.0/8/p", "must not have a path"),
    ("http://ff00::/8/p", "must not have a path"),
    ("http://10.0.0.0/40", "is no network"),
    ("http://", "is no host"),
    ("http://a b", "` ` is not allowed in it"),
    ("http://u@h", "`@` is not allowed in it"),
    ("http://e%20.com", "`%` is not allowed in it"),
    ("http://a*b", "`*` must be the whole host or its first label"),
    ("http://*.*.com", "without another wildcard"),
    ("http://*.", "is no host"),
    ("http://*.127.0.0.1", "must be followed by a domain"),
    ("http://*.[::1]", "must be followed by a domain"),
    ("http://[::1", "is no IPv6 address"),
    ("http://[::1]x", "is no IPv6 address"),
    ("http://[::1]/p", "must not have a path"),
    ("http://[::1]::80", "is no IPv6 address"),
    ("http://1.2.3.256", "is no IPv4 address"),
    ("http://self:x", "the port `x`"),
]


@pytest.mark.parametrize(("entry", "message"), FAULTS)
def test_bad_entry_says_what_was_meant(entry: str, message: str) -> None:
    assert message in (entry_fault(entry) or "")


@pytest.mark.parametrize(
    ("entries", "databases", "expected"),
    [
        pytest.param(["h"], False, ["http://h", "https://h"], id="host"),
        pytest.param(["h:81"], False, ["http://h:81", "https://h:81"], id="port"),
        pytest.param(["http://h/"], False, ["http://h", "https://h"], id="scheme"),
        pytest.param(["https://h:443"], False, ["http://h", "https://h"], id="scheme's port"),
        pytest.param(["https://h:80"], False, ["http://h:80", "https://h:80"], id="not its port"),
        pytest.param(["[::1]:8"], False, ["http://[::1]:8", "https://[::1]:8"], id="IPv6"),
        pytest.param(["self"], False, ["http://self"], id="self"),
        pytest.param(
            ["a", "insecure:allow-all"], False,
            ["http://*:*", "https://*:*", "http://self"], id="all",
        ),
        pytest.param([], True, ["redis://*:*", "mysql://*:*", "postgres://*:*"], id="databases"),
    ],
)  # fmt: skip
def test_http_hosts(entries: list[str], databases: bool, expected: list[str]) -> None:
    converted = convert_http_hosts(entries, databases=databases)
    assert list(converted) == expected
    assert AllowedHosts.parse(converted).entries


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("h/p", "without a path"),
        ("http://h?q", "without a path"),
        ("redis://h", "after http:// or https://"),
        ("h:x", "must be a host, or host:port"),
        ("", "must be a host"),
        ("a b", "` ` is not allowed"),
    ],
)
def test_bad_http_host(entry: str, message: str) -> None:
    assert message in (http_host_fault(entry) or "")
    with pytest.raises(HostError):
        convert_http_hosts([entry], databases=False)


@pytest.mark.parametrize(
    ("field", "scheme", "host", "port", "entry"),
    [
        ("allowed_outbound_hosts", "http", "h", None, "http://h"),
        ("allowed_outbound_hosts", "https", "h", 443, "https://h"),
        ("allowed_outbound_hosts", "http", "h", 81, "http://h:81"),
        ("allowed_outbound_hosts", "redis", "::1", 6380, "redis://[::1]:6380"),
        ("allowed_outbound_hosts", "tcp", "h", 9, "tcp://h:9"),
        ("allowed_outbound_hosts", "http", "self", None, "http://self"),
        ("allowed_http_hosts", "https", "h", None, "h"),
        ("allowed_http_hosts", "https", "h", 81, "h:81"),
        ("allowed_http_hosts", "http", "self", None, "self"),
    ],
)
def test_denial_names_the_entry_that_would_help(
    field: HostsField, scheme: str, host: str, port: int | None, entry: str
) -> None:
    assert entry_for(field, scheme, host, port) == entry
    message = denial("c", field, scheme, host, port)
    assert f'it needs {field} = ["{entry}"] in the manifest' in message
    older = field == "allowed_http_hosts"
    hosts = AllowedHosts.parse(convert_http_hosts([entry], databases=False) if older else [entry])
    assert hosts.allows_self(scheme) if host == "self" else hosts.allows(scheme, host, port)


def test_denial_is_one_sentence() -> None:
    assert denial("cart", "allowed_outbound_hosts", "redis", "db", 6379) == (
        "component 'cart' may not connect to redis://db: "
        'it needs allowed_outbound_hosts = ["redis://db"] in the manifest'
    )
    assert "connect to its own app: it needs" in denial(
        "cart", "allowed_outbound_hosts", "http", "self", None
    )


def test_denial_of_a_database_in_version_1() -> None:
    assert 'allowed_outbound_hosts = ["mqtt://h"]' in denial(
        "c", "allowed_http_hosts", "mqtt", "h", None
    )


@given(st.text(max_size=40))
def test_any_text_is_an_entry_or_a_fault(text: str) -> None:
    for entry in (text, f"http://{text}", f"http://h:{text}", f"{text}://h:1"):
        if entry_fault(entry) is None:
            AllowedHosts.parse([entry]).allows("http", text)


@given(st.text(max_size=40))
def test_any_text_is_an_http_host_or_a_fault(text: str) -> None:
    if http_host_fault(text) is None:
        AllowedHosts.parse(convert_http_hosts([text], databases=False))
