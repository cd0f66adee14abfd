from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_spin_v1.abi.wagi import (
    INSUFFICIENT_TEXT,
    WagiError,
    parse_cgi_response,
    split_host,
    wagi_argv,
    wagi_env,
)
from containerd_shim_spin_v1.routing.request_data import RouteDataTable
from containerd_shim_spin_v1.routing.v1 import Router

DEFAULT_ARGV = "${SCRIPT_NAME} ${ARGS}"


@pytest.mark.parametrize(
    ("template", "query", "argv"),
    [
        pytest.param(DEFAULT_ARGV, "", ["/a/b", ""], id="no query leaves an empty argument"),
        pytest.param(DEFAULT_ARGV, "x=1&y=2", ["/a/b", "x=1", "y=2"], id="ampersands separate"),
        pytest.param(DEFAULT_ARGV, "x=%20+", ["/a/b", "x=%20+"], id="nothing is decoded"),
        pytest.param("p  ${ARGS}", "x", ["p", "", "x"], id="two spaces"),
        pytest.param("p ${SCRIPT_NAME}${SCRIPT_NAME}", "x", ["p", "/a/b/a/b"], id="twice"),
        pytest.param("", "x", [""], id="empty"),
        pytest.param("$ARGS ${args}", "x", ["$ARGS", "${args}"], id="other words are text"),
    ],
)
def test_argv(template: str, query: str, argv: list[str]) -> None:
    assert wagi_argv(template, "/a/b", query) == argv


def env_of(
    path: str = "/base/foo/b%20r",
    headers: list[tuple[bytes, bytes]] | None = None,
    host: str = "example.com:81",
) -> dict[str, str]:
    router = Router("/base", [("c", "/foo/...")])
    match = router.match(path)
    assert match is not None
    data = RouteDataTable(router.routes)
    pairs = wagi_env(
        match,
        data.env(match, f"http://{host}{path}?q=1", "10.0.0.1:4000"),
        method="POST",
        query="q=1",
        http_version="1.1",
        headers=headers or [],
        host=host,
        client_host="10.0.0.1",
        body_bytes=5,
    )
    env = dict(pairs)
    assert len(env) == len(pairs)
    return env


def test_environment_is_complete() -> None:
    assert env_of() == {
        "AUTH_TYPE": "",
        "CONTENT_LENGTH": "5",
        "CONTENT_TYPE": "",
        "X_FULL_URL": "http://example.com:81/base/foo/b%20r?q=1",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "X_MATCHED_ROUTE": "/base/foo/...",
        "X_BASE_PATH": "/base",
        "X_RAW_COMPONENT_ROUTE": "/foo/...",
        "X_COMPONENT_ROUTE": "/foo",
        "X_CLIENT_ADDR": "10.0.0.1:4000",
        "QUERY_STRING": "q=1",
        "REMOTE_ADDR": "10.0.0.1",
        "REMOTE_HOST": "10.0.0.1",
        "REMOTE_USER": "",
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/base/foo",
        "X_RAW_PATH_INFO": "/b%20r",
        "PATH_INFO": "/b%20r",
        "PATH_TRANSLATED": "/b r",
        "SERVER_NAME": "example.com",
        "SERVER_PORT": "81",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "WAGI/1",
    }


@pytest.mark.parametrize(
    ("headers", "name", "value"),
    [
        pytest.param([(b"x-a-b", b"1")], "HTTP_X_A_B", "1", id="name"),
        pytest.param([(b"a", b"1"), (b"a", b"2")], "HTTP_A", "2", id="last of two"),
        pytest.param([(b"a", b"\xe9")], "HTTP_A", "CORRUPT VALUE", id="not ascii"),
        pytest.param([(b"a", b"x\ty ")], "HTTP_A", "x\ty ", id="tab and space"),
        pytest.param([(b"host", b"h")], "HTTP_HOST", "h", id="host"),
        pytest.param([(b"authorization", b"x")], "HTTP_AUTHORIZATION", None, id="authorization"),
        pytest.param([(b"connection", b"x")], "HTTP_CONNECTION", None, id="connection"),
        pytest.param([(b"content-type", b"t/p")], "CONTENT_TYPE", "", id="content type is empty"),
        pytest.param([(b"content-type", b"t/p")], "HTTP_CONTENT_TYPE", "t/p", id="type as header"),
        pytest.param([(b"content_type", b"t/p")], "CONTENT_TYPE", "t/p", id="content_type"),
        pytest.param([(b"content_type", b"\xe9")], "CONTENT_TYPE", "", id="bad content_type"),
    ],
)
def test_environment_from_headers(
    headers: list[tuple[bytes, bytes]], name: str, value: str | None
) -> None:
    assert env_of(headers=headers).get(name) == value


@pytest.mark.parametrize(
    ("rest", "translated"),
    [
        pytest.param("/%C3%A9", "/é", id="utf-8"),
        pytest.param("/%E9", "/\ufffd", id="not utf-8"),
        pytest.param("/%00", "/\ufffd", id="nul"),
        pytest.param("/%zz%2", "/%zz%2", id="no escape"),
        pytest.param("/a+b", "/a+b", id="plus"),
    ],
)
def test_path_translated(rest: str, translated: str) -> None:
    env = env_of(path=f"/base/foo{rest}")
    assert (env["PATH_TRANSLATED"], env["PATH_INFO"]) == (translated, rest)


@pytest.mark.parametrize(
    ("host", "parts"),
    [
        ("", ("localhost", "80")),
        ("h", ("h", "80")),
        ("h:8080", ("h", "8080")),
        ("h:", ("h", "80")),
        (":81", ("localhost", "81")),
        ("[::1]", ("[::1]", "80")),
        ("[::1]:81", ("[::1]", "81")),
    ],
)
def test_split_host(host: str, parts: tuple[str, str]) -> None:
    assert split_host(host) == parts


@pytest.mark.parametrize(
    ("stdout", "status", "headers", "body"),
    [
        pytest.param(
            b"Content-Type: a/b\n\nhi\n", 200, {"content-type": "a/b"}, b"hi\n", id="lf"
        ),
        pytest.param(
            b"content-type: a/b\r\n\r\nhi\r\n\r\n",
            200,
            {"content-type": "a/b"},
            b"hi\r\n\r\n",
            id="crlf, body untouched",
        ),
        pytest.param(b"content-type:a/b\n\r\r\nx", 200, {"content-type": "a/b"}, b"x", id="cr cr"),
        pytest.param(b"co\rntent-type: a/b\n\n", 200, {"content-type": "a/b"}, b"", id="cr inside"),
        pytest.param(b"status: 404\n\nx", 404, {}, b"x", id="status suffices"),
        pytest.param(b"Status: 404 Not Found\n\n", 404, {}, b"", id="status with reason"),
        pytest.param(b"status: abc\n\nx", 502, {}, b"x", id="status no number"),
        pytest.param(b"status:\n\n", 502, {}, b"", id="empty status"),
        pytest.param(b"status: 99\n\n", 502, {}, b"", id="status too small"),
        pytest.param(b"status: 101\n\n", 502, {}, b"", id="status of no final response"),
        pytest.param(b"status: 600\n\n", 502, {}, b"", id="status too big"),
        pytest.param(b"status: 2000\n\n", 502, {}, b"", id="status too long"),
        pytest.param(b"location: /x\n\n", 302, {"location": "/x"}, b"", id="location"),
        pytest.param(
            b"location: /x\nstatus: 301\n\n", 301, {"location": "/x"}, b"", id="location, status"
        ),
        pytest.param(
            b"status: 301\nlocation: /x\n\n", 301, {"location": "/x"}, b"", id="status, location"
        ),
        pytest.param(
            b"content-type: a\nX-Y:  z: q \n\n", 200, {"content-type": "a", "x-y": "z: q"}, b"",
            id="other header",
        ),
        pytest.param(
            b"x: 1\nX: 2\nstatus: 200\n\n", 200, {"x": "2"}, b"", id="last of two"
        ),
        pytest.param(
            b"status: 200\ncontent-length: 99\nTransfer-Encoding: chunked\nconnection: x\n\nb",
            200, {}, b"b", id="framing dropped",
        ),
        pytest.param(b"x: 1\n\nbody", 500, {}, INSUFFICIENT_TEXT, id="none of the three"),
        pytest.param(b"content-type: a/b\nbody", 500, {}, INSUFFICIENT_TEXT, id="no blank line"),
        pytest.param(b"\n\ncontent-type: a\n\n", 500, {}, INSUFFICIENT_TEXT, id="blank line first"),
        pytest.param(b"\ncontent-type: a\n\n", 200, {"content-type": "a"}, b"", id="lf first"),
    ],
)  # fmt: skip
def test_cgi_response(stdout: bytes, status: int, headers: dict[str, str], body: bytes) -> None:
    response = parse_cgi_response(stdout)
    assert (response.status, dict(response.headers), response.body) == (status, headers, body)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        pytest.param(b"no colon", "line without colon: 'no colon'", id="no colon"),
        pytest.param(b"b\xc3\xa9: x", "bad header name: 'bé'", id="name not ascii"),
        pytest.param(b"a b: x", "bad header name: 'a b'", id="space in name"),
        pytest.param(b": x", "bad header name: ''", id="no name"),
    ],
)
def test_bad_header_line_is_passed_over(block: bytes, reason: str) -> None:
    response = parse_cgi_response(b"status: 200\n" + block + b"\n\n")
    assert response.headers == ()
    assert response.ignored == (reason,)


@pytest.mark.parametrize(
    ("stdout", "message"),
    [
        pytest.param(b"", "wrote nothing to stdout", id="empty"),
        pytest.param(b"status: 200\nx: \xff\n\n", "not UTF-8", id="block not utf-8"),
        pytest.param(b"status: 200\nx: a\0b\n\n", "not visible ASCII", id="nul"),
        pytest.param(b"status: 200\nx: \xc3\xa9\n\n", "not visible ASCII", id="not ascii"),
        pytest.param(b"status: 200\nlocation: a\x7f\n\n", "not visible ASCII", id="delete"),
    ],
)
def test_unusable_output_fails_the_request(stdout: bytes, message: str) -> None:
    with pytest.raises(WagiError, match=message):
        parse_cgi_response(stdout)


@given(st.binary(max_size=200).map(lambda tail: b"status: 200\nx" + tail))
def test_headers_are_always_safe_to_send(stdout: bytes) -> None:
    try:
        response = parse_cgi_response(stdout)
    except WagiError:
        return
    assert 200 <= response.status <= 599
    for name, value in response.headers:
        assert name.isascii()
        assert not set(name) & set(" \t\r\n\0:")
        assert value.isascii()
        assert not set(value) & set("\r\n\0")
