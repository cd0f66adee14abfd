"""Requests as they are sent and what has to come back, for apps wherever they are served."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from containerd_shimkit.testing.http import Response, connected

HeaderList = Sequence[tuple[str, str | bytes]]

CLIENT = "{client}"
"""Stands for the client's address and port in what is expected."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request, byte for byte."""

    target: str = "/"
    method: str = "GET"
    headers: HeaderList = ()
    host: str | None = "test"
    """None: without ``Host``, which HTTP/1.0 allows."""
    body: bytes = b""

    def header_pairs(self) -> list[tuple[bytes, bytes]]:
        """Return all headers, as they are sent."""
        headers = list(self.headers)
        if self.host is not None:
            headers.insert(0, ("host", self.host))
        if self.body:
            headers.append(("content-length", str(len(self.body))))
        return [(n.encode(), v if isinstance(v, bytes) else v.encode()) for n, v in headers]

    def data(self) -> bytes:
        """Return what goes over the wire."""
        version = "1.0" if self.host is None else "1.1"
        lines = [f"{self.method} {self.target} HTTP/{version}".encode()]
        lines += [name + b": " + value for name, value in self.header_pairs()]
        return b"\r\n".join([*lines, b"", self.body])


@dataclass(frozen=True, slots=True)
class Seen:
    """What a component must have been given. Of headers and variables only those named are
    looked at: a list of values, or None where there must be none."""

    component: str | None = None
    line: str | None = None
    """Method and URI, by the Spin executor."""
    headers: Mapping[str, Sequence[str] | None] = field(default_factory=dict)
    arguments: Sequence[str] | None = None
    """By the WAGI executor, as ``environment``."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer."""

    rule: str
    sent: Sent
    status: int = 200
    body: bytes | None = None
    """None: not looked at."""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    seen: Seen | None = None
    """What the component says it was given; it is ``mirror``, or ``wagi_probe`` with
    ``MODE = "mirror"``."""


@dataclass(frozen=True, slots=True)
class App:
    """An app, what is asked of it, and what it has to log."""

    name: str
    manifest: str
    guests: Sequence[str]
    """Modules in ``tests/guests``, without ``.wasm``."""
    exchanges: Sequence[Exchange]
    logged: Sequence[str] = ()
    sample: bool = False
    """Asked through containerd, too."""

    async def check(self, host: str, port: int) -> None:
        """Ask everything; AssertionError with all that is not as it has to be."""
        faults = []
        for exchange in self.exchanges:
            async with connected(port, host) as connection:
                await connection.send(exchange.sent.data())
                response = await connection.response(exchange.sent.method)
                client = f"127.0.0.1:{connection.local_port}"
            faults += [f"{exchange.rule}: {fault}" for fault in _faults(exchange, response, client)]
        assert not faults, "\n".join([self.name, *faults])


def _faults(exchange: Exchange, response: Response, client: str) -> Iterable[str]:
    if response.status != exchange.status:
        yield f"status {response.status}, not {exchange.status}: {response.body[:200]!r}"
        return
    if exchange.body is not None and response.body != exchange.body:
        yield f"body {response.body[:200]!r}, not {exchange.body[:200]!r}"
    for name, value in exchange.headers.items():
        found = [v for n, v in response.headers if n == name]
        if found != ([] if value is None else [value]):
            yield f"header {name} is {found}, not {value!r}"
    if exchange.seen is not None:
        is_wagi = response.body.startswith(b"- ")
        yield from (_wagi_faults if is_wagi else _spin_faults)(exchange.seen, response, client)


def _spin_faults(seen: Seen, response: Response, client: str) -> Iterable[str]:
    head, _, body = response.body.partition(b"\n\n")
    name, line, *lines = head.decode().split("\n")
    headers: dict[str, list[str]] = {}
    for entry in lines:
        key, _, value = entry.partition(": ")
        headers.setdefault(key, []).append(value)
    if seen.component is not None and name != seen.component:
        yield f"component {name}, not {seen.component}"
    if seen.line is not None and line != seen.line:
        yield f"request {line!r}, not {seen.line!r}"
    for key, values in seen.headers.items():
        wanted = None if values is None else [value.replace(CLIENT, client) for value in values]
        if headers.get(key) != wanted:
            yield f"header {key} is {headers.get(key)}, not {wanted}"
    if seen.body is not None and body != seen.body:
        yield f"body {body!r}, not {seen.body!r}"


def _wagi_faults(seen: Seen, response: Response, client: str) -> Iterable[str]:
    head, _, body = response.body.partition(b"\n\n")
    lines = head.decode().split("\n")
    arguments = [line[2:] for line in lines if line.startswith("- ")]
    pairs = [line.partition("=") for line in lines if not line.startswith("- ")]
    env = {key: value for key, _, value in pairs}
    if len(env) != len(pairs):
        yield f"a variable is there twice: {pairs}"
    if seen.component is not None and env["NAME"] != seen.component:
        yield f"component {env['NAME']}, not {seen.component}"
    if seen.arguments is not None and arguments != list(seen.arguments):
        yield f"arguments {arguments}, not {seen.arguments}"
    for key, value in seen.environment.items():
        wanted = value and value.replace(CLIENT, client)
        if env.get(key) != wanted:
            yield f"variable {key} is {env.get(key)!r}, not {wanted!r}"
    if seen.body is not None and body != seen.body:
        yield f"body {body!r}, not {seen.body!r}"
