"""The WAGI executor's side of a request: arguments, environment, and the response on stdout.

WAGI is CGI (RFC 3875) with a WebAssembly program. The program's arguments come from a template, its
environment from the request, its stdin is the body, and its stdout is a header block, a blank line
and the body of the response.

Where this is not as in Spin 1.x:

- Without a Host header SERVER_NAME is ``localhost``, as in X_FULL_URL; Spin has ``default_host``.
- ``[::1]:80`` as Host is split after the bracket; Spin splits at the first colon.
- A NUL decoded from a path is replaced by U+FFFD: no environment variable can hold it.
- Headers that frame the response (Content-Length, Transfer-Encoding and those of the connection)
  are dropped: the server sets them, and two opinions about a length would let responses be forged.
- A status that cannot end a request, below 200 or above 599, is 502 like one that is no number.
- Of repeated headers the last one wins whatever the case of its letters; Spin's choice is random.
- A value that may not stand in a header fails the request; in Spin it aborts the connection.

Sources: Spin 1.5 crates/http/src/wagi/mod.rs, crates/trigger-http/src/wagi.rs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from containerd_shim_spin_v1.routing.request_data import DEFAULT_HOST
from containerd_shim_spin_v1.routing.v1 import Match
from containerd_shimkit.errors import EngineError
from containerd_shimkit.http.messages import FRAMING

INSUFFICIENT_TEXT = b"Exactly one of 'location' or 'content-type' must be specified"

_HIDDEN_HEADERS = frozenset({"HTTP_AUTHORIZATION", "HTTP_CONNECTION"})  # RFC 3875 section 4.1.18
_CORRUPT = "CORRUPT VALUE"

_FRAMING = frozenset(name.decode() for name in FRAMING)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")  # RFC 9110 section 5.6.2, in lower case
_FIELD_VALUE = re.compile(r"[\t -~]*")  # what the Rust crate http takes from a string
_BLANK_LINE = re.compile(rb"\n\r*\n")


class WagiError(EngineError):
    """The program's output is no response; the client gets 500, the message is for the log."""


@dataclass(frozen=True, slots=True)
class CgiResponse:
    """A parsed response."""

    status: int
    headers: tuple[tuple[str, str], ...]
    """Names in lower case, each once."""
    body: bytes
    ignored: tuple[str, ...] = ()
    """Why a line of the header block was passed over, for the log."""


def wagi_argv(template: str, script_name: str, query: str) -> list[str]:
    """Return the program's arguments.

    script_name: the request's path.  query: as sent, its ``&`` separate arguments.
    Empty arguments are kept: without a query the default template ends in one.
    """
    text = template.replace("${SCRIPT_NAME}", script_name)
    return text.replace("${ARGS}", query.replace("&", " ")).split(" ")


def wagi_env(
    match: Match,
    route_env: Iterable[tuple[str, str]],
    *,
    method: str,
    query: str,
    http_version: str,
    headers: Iterable[tuple[bytes, bytes]],
    host: str,
    client_host: str,
    body_bytes: int,
) -> list[tuple[str, str]]:
    """Return the program's environment, each name once.

    route_env: from ``RouteDataTable.env``; it overrides the rest, so PATH_INFO is not decoded.
    query: as sent, without ``?``.  http_version: ``1.1``.  headers: names in lower case.
    host: from ``request_host``.  client_host: the client's address without port.
    """
    values = {name.decode("latin-1"): value for name, value in headers}
    server_name, server_port = split_host(host)
    decoded = unquote(match.path_info, errors="replace").replace("\0", "\ufffd")
    env = {
        "AUTH_TYPE": "",
        "CONTENT_LENGTH": str(body_bytes),
        # Spin asks for a header of this very name, with an underscore, so it is nearly always
        # empty; guests know the type from HTTP_CONTENT_TYPE.
        "CONTENT_TYPE": _visible(values.get("content_type", b"")) or "",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "QUERY_STRING": query,
        "REMOTE_ADDR": client_host,
        "REMOTE_HOST": client_host,
        "REMOTE_USER": "",
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": match.route.pattern.path,
        "X_RAW_PATH_INFO": match.path_info,
        "PATH_TRANSLATED": decoded,
        "SERVER_NAME": server_name,
        "SERVER_PORT": server_port,
        "SERVER_PROTOCOL": f"HTTP/{http_version}",
        "SERVER_SOFTWARE": "WAGI/1",
    }
    for name, value in values.items():
        key = "HTTP_" + name.upper().replace("-", "_")
        if key not in _HIDDEN_HEADERS:
            visible = _visible(value)
            env[key] = _CORRUPT if visible is None else visible
    env.update(route_env)
    return list(env.items())


def split_host(host: str) -> tuple[str, str]:
    """Return name and port of a Host header, ``localhost`` and ``80`` for what it does not say."""
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(.*))?", host)
    name, port = found.groups() if found else (host, None)
    return name or DEFAULT_HOST, port or "80"


def _visible(value: bytes) -> str | None:
    """Return a header's value if it is visible ASCII, spaces and tabs."""
    text = value.decode("latin-1")
    return text if _FIELD_VALUE.fullmatch(text) else None


def parse_cgi_response(stdout: bytes) -> CgiResponse:
    """Parse what a program wrote.

    The header block ends at the first blank line; carriage returns in it count for nothing. Without
    ``content-type``, ``status`` or ``location`` the response is a 500 that says so; a ``status``
    that is no number is a 502; a ``location`` without ``status`` is a 302.
    Raises WagiError if there is no output, if the header block is not UTF-8, or if a value may not
    stand in a header.
    """
    if not stdout:
        raise WagiError("the component wrote nothing to stdout; is `executor` right in spin.toml?")
    blank = _BLANK_LINE.search(stdout)
    block, body = (stdout[: blank.start()], stdout[blank.end() :]) if blank else (b"", b"")
    try:
        text = block.replace(b"\r", b"").decode()
    except UnicodeDecodeError as exc:
        raise WagiError(f"the header block on stdout is not UTF-8: {exc}") from None
    fields, ignored = _parse_fields(text)
    if not fields.keys() & {"content-type", "status", "location"}:
        return CgiResponse(500, (), INSUFFICIENT_TEXT, tuple(ignored))
    status = 302 if "location" in fields else 200
    if "status" in fields:
        status = _parse_status(fields.pop("status"), ignored)
    return CgiResponse(status, tuple(fields.items()), body, tuple(ignored))


def _parse_fields(text: str) -> tuple[dict[str, str], list[str]]:
    fields: dict[str, str] = {}
    ignored = []
    for line in text.strip().split("\n"):
        name, colon, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon:
            ignored.append(f"line without colon: {line[:80]!r}")
        elif _TOKEN.fullmatch(name) is None:
            ignored.append(f"bad header name: {name[:80]!r}")
        elif name in _FRAMING:
            continue
        elif _FIELD_VALUE.fullmatch(value) is None:
            raise WagiError(f"value of header {name!r} is not visible ASCII: {value[:80]!r}")
        else:
            fields[name] = value
    return fields, ignored


def _parse_status(value: str, ignored: list[str]) -> int:
    """Return the code of ``404 Not Found``; only what comes before the first space counts."""
    code = value.split(" ", 1)[0]
    if re.fullmatch(r"[2-5][0-9]{2}", code) is None:
        ignored.append(f"bad status: {value[:80]!r}")
        return 502
    return int(code)
