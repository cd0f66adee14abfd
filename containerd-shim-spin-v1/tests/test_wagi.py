from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_spin_v1.abi.wagi import (
    WagiError,
    parse_cgi_response,
    split_host,
    wagi_argv,
    wagi_env,
)
from containerd_shim_spin_v1.routing.request_data import RouteDataTable
from containerd_shim_spin_v1.routing.v1 import Router
from spin_rules.exchange import Sent
from spin_rules.request_data import NAMES, PASSED, Passed
from spin_rules.wagi import (
    ARGUMENTS,
    ENVIRONMENT,
    OUTPUTS,
    SERVERS,
    SKIPPED,
    TRANSLATED,
    UNUSABLE,
    Arguments,
    Output,
    Skipped,
    Unusable,
)

DEFAULT_ARGV = "${SCRIPT_NAME} ${ARGS}"


@pytest.mark.parametrize("row", ARGUMENTS, ids=lambda row: row.rule)
def test_arguments(row: Arguments) -> None:
    template = DEFAULT_ARGV if row.template is None else row.template
    assert wagi_argv(template, row.path, row.query) == row.arguments


def env_of(
    path: str = "/base/foo/b%20r",
    headers: Sequence[tuple[bytes, bytes]] = (),
    host: str = "example.com:81",
) -> dict[str, str]:
    router = Router("/base", [("c", "/foo/...")])
    match = router.match(path)
    assert match is not None
    data = RouteDataTable(router.routes)
    pairs = wagi_env(
        match,
        data.env(match, f"http://{host}{path}?q=%31", "127.0.0.1:4000"),
        method="POST",
        query="q=%31",
        http_version="1.1",
        headers=headers,
        host=host,
        client_host="127.0.0.1",
        body_bytes=5,
    )
    env = dict(pairs)
    assert len(env) == len(pairs)
    return env


def test_environment_is_complete() -> None:
    assert env_of() == {**ENVIRONMENT, "X_CLIENT_ADDR": "127.0.0.1:4000"}


@pytest.mark.parametrize("row", PASSED, ids=lambda row: row.rule)
def test_environment_from_headers(row: Passed) -> None:
    sent = Sent(headers=row.sent)
    env = env_of(headers=[(name.lower(), value) for name, value in sent.header_pairs()])
    ours = dict(NAMES).values()
    wanted = {name: value for name, value in row.environment.items() if name not in ours}
    assert {name: env.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("rest", TRANSLATED)
def test_path_translated(rest: str) -> None:
    env = env_of(path=f"/base/foo{rest}")
    assert (env["PATH_TRANSLATED"], env["PATH_INFO"]) == (TRANSLATED[rest], rest)


@pytest.mark.parametrize(
    ("host", "parts"), [*SERVERS.items(), ("", ("localhost", "80")), (":81", ("localhost", "81"))]
)
def test_split_host(host: str, parts: tuple[str, str]) -> None:
    assert split_host(host) == parts


@pytest.mark.parametrize("row", OUTPUTS, ids=lambda row: row.rule)
def test_output(row: Output) -> None:
    response = parse_cgi_response(row.stdout)
    found = (response.status, dict(response.headers), response.body)
    assert found == (row.status, row.headers, row.body)


@pytest.mark.parametrize("row", SKIPPED, ids=lambda row: row.rule)
def test_line_that_is_passed_over(row: Skipped) -> None:
    response = parse_cgi_response(b"status: 200\n" + row.line + b"\n\n")
    assert response.headers == ()
    assert response.ignored == (row.reason,)


@pytest.mark.parametrize("row", UNUSABLE, ids=lambda row: row.rule)
def test_unusable_output_fails_the_request(row: Unusable) -> None:
    with pytest.raises(WagiError, match=row.reason):
        parse_cgi_response(row.stdout)


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
