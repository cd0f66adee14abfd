"""Addresses of MySQL servers."""

from __future__ import annotations

import pytest

from containerd_shim_spin_v1.host.database import AddressError
from containerd_shim_spin_v1.host.mysql_address import parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mysql://u@h", ("h", 3306, "u", "", None)),
        ("mysql://u:p@h:1234/d", ("h", 1234, "u", "p", "d")),
        ("mysql://u%40x:p%3A%2F@h/d%20e", ("h", 3306, "u@x", "p:/", "d e")),
        ("mysql://u@[::1]:99/d", ("::1", 99, "u", "", "d")),
        ("mysql://u:%C3%A9@h/", ("h", 3306, "u", "é", None)),
        ("mysql://u@h?pool_max=10&tcp_keepalive=5", ("h", 3306, "u", "", None)),
    ],
)
def test_what_an_address_says(text: str, expected: tuple[object, ...]) -> None:
    found = parse_address(text)
    assert (found.host, found.port, found.user, found.password, found.database) == expected


@pytest.mark.parametrize(
    ("query", "tls"),
    [
        ("", False),
        ("?ssl-mode=DISABLED", False),
        ("?sslmode=disabled", False),
        ("?ssl-mode=REQUIRED", True),
        ("?SsLmOdE=VERIFY_CA&pool_max=10", True),
        ("?sslMode=PREFERRED", True),
        ("?require_ssl=true", True),
        ("?require_ssl=false", False),
    ],
)
def test_tls(query: str, tls: bool) -> None:
    assert parse_address(f"mysql://u@h/d{query}").tls is tls


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a URL"),
        ("postgres://u@h", "mysql://"),
        ("mysql://h", "names no user"),
        ("mysql://u@", "names no host"),
        ("mysql://u@h:0", "names no host"),
        ("mysql://u@h:99999", "host or port"),
        ("mysql://u@h:x", "host or port"),
        ("mysql://u@[::1", "host or port"),
        ("mysql://u@h?socket=/run/mysqld.sock", "'socket'"),
        ("mysql://u@h?enable_cleartext_plugin=true", "'enable_cleartext_plugin'"),
        ("mysql://u:%FF@h", "UTF-8"),
        ("mysql://u%00@h", "NUL"),
        ("mysql://u\n@h", "must be a URL"),
        ("mysql://u@h/" + "d" * 20_000, "up to 16384 characters"),
    ],
)
def test_addresses_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(AddressError, match=message):
        parse_address(text)


def test_the_password_is_not_shown() -> None:
    address = parse_address("mysql://u:secret@h")
    assert "secret" not in f"{address!r}{address.shown}"
    assert address.shown == "mysql://h:3306"
