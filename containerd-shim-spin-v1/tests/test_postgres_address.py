"""Addresses of PostgreSQL servers, in both forms."""

from __future__ import annotations

import pytest

from containerd_shim_spin_v1.host.database import AddressError
from containerd_shim_spin_v1.host.postgres_address import parse_address


@pytest.mark.parametrize(
    ("text", "hosts", "user", "password", "database"),
    [
        ("postgres://u@h", [("h", 5432)], "u", "", "u"),
        ("postgresql://u:p@h:1234/d", [("h", 1234)], "u", "p", "d"),
        ("postgres://u%40x:p%3A%2F@h/d%20e", [("h", 5432)], "u@x", "p:/", "d e"),
        ("postgres://u:p@q@h/d", [("h", 5432)], "u", "p@q", "d"),
        ("postgres://u@[::1]:99/d", [("::1", 99)], "u", "", "d"),
        ("postgres://u@a:1,b,c:3/d", [("a", 1), ("b", 5432), ("c", 3)], "u", "", "d"),
        ("postgres://h/d?user=u&password=p&port=7", [("h", 7)], "u", "p", "d"),
        ("host=h user=u", [("h", 5432)], "u", "", "u"),
        (
            "  host = h  port=1 user=u password='it\\'s \\\\ x' dbname=''",
            [("h", 1)],
            *("u", "it's \\ x", "u"),
        ),
        ("host=a,b port=5 user=u dbname=d\\ e", [("a", 5), ("b", 5)], "u", "", "d e"),
        ("host=a,b port=5,6 user=u password=p=q", [("a", 5), ("b", 6)], "u", "p=q", "u"),
    ],
)
def test_what_an_address_says(
    text: str, hosts: list[tuple[str, int]], user: str, password: str, database: str
) -> None:
    address = parse_address(text)
    assert list(address.hosts) == hosts
    assert (address.user, address.password, address.database) == (user, password, database)


def test_options() -> None:
    address = parse_address(
        "postgres://u@h/d?sslmode=require&application_name=a%20b&options=-c%20x%3D1"
        "&target_session_attrs=read-write&connect_timeout=3&keepalives=0"
    )
    assert address.ssl_mode == "require"
    assert address.session_attributes == "read-write"
    assert address.settings == (("application_name", "a b"), ("options", "-c x=1"))
    assert parse_address("postgres://u@h").ssl_mode == "prefer"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no user"),
        ("mysql://u@h", "postgres://"),
        ("h", "name=value"),
        ("host=h user=u password='x", "name=value"),
        ("host=h", "names no user"),
        ("user=u", "names no host"),
        ("postgres://u@/d", "names no host"),
        ("postgres://u@a,/d", "names no host"),
        ("host=/run/postgresql user=u", "Unix socket"),
        ("postgres://u@%2Frun/d", "Unix socket"),
        ("host=@abstract user=u", "Unix socket"),
        ("host=h hostaddr=10.0.0.1 user=u", "'hostaddr'"),
        ("postgres://u@h?passfile=/etc/passwd", "'passfile'"),
        ("postgres://u@h?sslkey=/k", "'sslkey'"),
        ("postgres://u@h?sslrootcert=/k", "'sslrootcert'"),
        ("postgres://u@h?service=x", "'service'"),
        ("postgres://u@h?sslmode", "without a value"),
        ("postgres://u@h?sslmode=what", "sslmode='what'"),
        ("postgres://u@h?channel_binding=require", "channel_binding"),
        ("postgres://u@h?target_session_attrs=standby", "target_session_attrs"),
        ("postgres://u@h:99999", "between 1 and 65535"),
        ("postgres://u@h:x", "host or port"),
        ("host=h port=x user=u", "between 1 and 65535"),
        ("host=a,b port=1,2,3 user=u", "port for each host"),
        ("postgres://u:%FF@h", "UTF-8"),
        ("postgres://u:%00@h", "NUL"),
        ("postgres://u\0@h", "NUL"),
        ("postgres://u@h/" + "d" * 20_000, "up to 16384 characters"),
        ("host=" + ",".join("h" * 20) + " user=u", "up to 16 hosts"),
    ],
)
def test_addresses_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(AddressError, match=message):
        parse_address(text)


def test_the_password_is_not_shown() -> None:
    address = parse_address("postgres://u:secret@h")
    assert "secret" not in f"{address!r}{address.shown}"
    assert address.shown == "postgres://h:5432"
    with pytest.raises(AddressError) as caught:
        parse_address("postgres://u:secret@h?bad")
    assert "secret" not in str(caught.value)
