from __future__ import annotations

import pytest

from containerd_shim_spin_v1.routing.request_data import (
    SPIN_HEADERS,
    RequestRefusedError,
    RouteData,
    RouteDataTable,
    client_address,
    client_headers,
    full_url,
    request_host,
    request_target,
)
from containerd_shim_spin_v1.routing.v1 import Match, Router


def match(base: str, route: str, path: str) -> Match:
    found = Router(base, [("c", route)]).match(path)
    assert found is not None
    return found


def test_headers_in_order() -> None:
    found = match("/base", "/foo/...", "/base/foo/bar")
    url = full_url("http", "localhost:3000", "/base/foo/bar?q=1")
    assert RouteData(found.route).headers(found.path_info, url, "127.0.0.1:777") == [
        *(b"spin-path-info", b"/bar"),
        *(b"spin-full-url", b"http://localhost:3000/base/foo/bar?q=1"),
        *(b"spin-matched-route", b"/base/foo/..."),
        *(b"spin-base-path", b"/base"),
        *(b"spin-raw-component-route", b"/foo/..."),
        *(b"spin-component-route", b"/foo"),
        *(b"spin-client-addr", b"127.0.0.1:777"),
    ]


def test_environment_in_order() -> None:
    router = Router("/", [("a", "/other"), ("c", "/...")])
    found = router.match("/x")
    assert found is not None
    assert RouteDataTable(router.routes).env(found, "http://h/x", "[::1]:7") == [
        ("PATH_INFO", "/x"),
        ("X_FULL_URL", "http://h/x"),
        ("X_MATCHED_ROUTE", "/..."),
        ("X_BASE_PATH", "/"),
        ("X_RAW_COMPONENT_ROUTE", "/..."),
        ("X_COMPONENT_ROUTE", ""),
        ("X_CLIENT_ADDR", "[::1]:7"),
    ]


def test_table_gives_each_route_its_own() -> None:
    router = Router("/", [("a", "/a"), ("b", "/b/...")])
    table = RouteDataTable(router.routes)
    for path in ("/a", "/b/x"):
        found = router.match(path)
        assert found is not None
        expected = RouteData(found.route).headers(found.path_info, "u", "c")
        assert table.headers(found, "u", "c") == expected


def test_client_cannot_set_our_headers() -> None:
    sent = [(name, b"forged") for name in SPIN_HEADERS]
    kept = [(b"spin-other", b"1"), (b"accept", b"a"), (b"accept", b"b")]
    assert client_headers([*sent, *kept]) == [
        *(b"spin-other", b"1"),
        *(b"accept", b"a"),
        *(b"accept", b"b"),
    ]


def test_header_values_are_utf8() -> None:
    assert client_headers([(b"x", "é".encode())]) == [b"x", "é".encode()]


@pytest.mark.parametrize("value", [b"\xe9", b"\xc3", b"\xed\xa0\x80"])
def test_header_that_is_not_utf8_fails_the_request(value: bytes) -> None:
    with pytest.raises(RequestRefusedError, match="not UTF-8") as caught:
        client_headers([(b"x", value)])
    assert caught.value.http_status == 500


@pytest.mark.parametrize(
    ("headers", "host"),
    [
        pytest.param([], "localhost", id="none"),
        pytest.param([(b"host", b"example.com")], "example.com", id="name"),
        pytest.param([(b"host", b"example.com:8080")], "example.com:8080", id="port"),
        pytest.param([(b"host", b"[::1]:80")], "[::1]:80", id="ipv6"),
        pytest.param([(b"x", b"y"), (b"host", b"h")], "h", id="among others"),
    ],
)
def test_host(headers: list[tuple[bytes, bytes]], host: str) -> None:
    assert request_host(headers) == host


@pytest.mark.parametrize(
    "values", [[b""], [b"a/b"], [b"a b"], [b"\xe9"], [b"u@h"], [b"[::1"], [b"h:x"], [b"a", b"b"]]
)
def test_bad_host_is_refused(values: list[bytes]) -> None:
    with pytest.raises(RequestRefusedError, match="Host") as caught:
        request_host([(b"host", value) for value in values])
    assert caught.value.http_status == 400


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
