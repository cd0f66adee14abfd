from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from containerd_shim_spin_v1.routing.request_data import (
    RequestRefusedError,
    RouteDataTable,
    client_address,
    client_headers,
    full_url,
    request_host,
    request_target,
)
from containerd_shim_spin_v1.routing.v1 import Match, Router
from containerd_shim_spin_v1.routing.v2 import PatternRouter
from spin_rules.exchange import CLIENT, Sent
from spin_rules.request_data import NAMES, PASSED, REFUSED, TOLD, Passed, Refused, Told


def values_of(told: Told) -> tuple[RouteDataTable, Match]:
    kind = Router if told.version == 1 else PatternRouter
    router = kind(told.base, [("other", "/other/route"), ("c0", told.route)])
    found = router.match(urlsplit(told.target).path)
    assert found is not None
    return RouteDataTable(router.routes), found


@pytest.mark.parametrize("told", TOLD, ids=lambda told: told.rule)
def test_what_a_component_is_told(told: Told) -> None:
    data, found = values_of(told)
    target = told.full_url.removeprefix("http://").partition("/")[2]
    host = request_host([], told.full_url.split("/")[2].encode())
    url = full_url("http", host, f"/{target}")
    texts = data.headers(found, url, CLIENT)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    assert pairs == [(n.encode(), v.encode()) for n, v in told.headers().items()]
    assert data.env(found, url, CLIENT) == list(told.environment().items())


def received(sent: Sent) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in sent.header_pairs()]


@pytest.mark.parametrize("row", PASSED, ids=lambda row: row.rule)
def test_headers_of_clients(row: Passed) -> None:
    headers = received(Sent(headers=row.sent))
    texts = client_headers(headers)
    assert list(zip(texts[::2], texts[1::2], strict=True)) == [
        (name, value) for name, value in headers if name not in OURS
    ]


OURS = {header.encode() for header, _ in NAMES} | {b"spin-path-match-id"}


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.rule)
def test_requests_that_are_refused(row: Refused) -> None:
    url = urlsplit(row.sent.target)
    headers = received(row.sent)
    with pytest.raises(RequestRefusedError) as caught:
        request_host(headers, url.netloc.encode() or None) and client_headers(headers)
    assert (caught.value.http_status, str(caught.value)) == (row.status, row.message)


@pytest.mark.parametrize(
    ("path", "query", "target"),
    [
        pytest.param(b"/a%20b", b"x=1&y", "/a%20b?x=1&y", id="as sent"),
        pytest.param(b"/a", b"", "/a", id="no query"),
        pytest.param(b"", b"", "/", id="empty"),
        pytest.param(b"", b"x", "/?x", id="empty with query"),
    ],
)
def test_target(path: bytes, query: bytes, target: str) -> None:
    assert request_target(path, query) == target


@pytest.mark.parametrize(("path", "query"), [(b"/\xc3\xa9", b""), (b"/", b"\xff")])
def test_target_that_is_not_ascii_is_refused(path: bytes, query: bytes) -> None:
    with pytest.raises(RequestRefusedError) as caught:
        request_target(path, query)
    assert caught.value.http_status == 400


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80")], ids=["v4", "v6"]
)
def test_client_address(host: str, expected: str) -> None:
    assert client_address(host, 80) == expected
