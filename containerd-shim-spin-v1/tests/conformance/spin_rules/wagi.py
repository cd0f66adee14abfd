"""Components by the WAGI executor: arguments, environment, and what their output comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from spin_rules.apps import WAGI, manifest_v1, manifest_v2
from spin_rules.exchange import App, Exchange, Seen, Sent

# Arguments


@dataclass(frozen=True, slots=True)
class Arguments:
    """A template, a request, and the program's arguments."""

    rule: str
    template: str | None
    """None is none in the manifest."""
    path: str
    query: str
    arguments: list[str]

    def app(self) -> App:
        executor = WAGI if self.template is None else WAGI_ARGV.replace("{}", self.template)
        target = self.path + (f"?{self.query}" if self.query else "")
        return App(
            f"arguments: {self.rule}",
            manifest_v1("/", ["/..."], wagi=True, executor=executor),
            ["wagi_probe"],
            [Exchange(self.rule, Sent(target), seen=Seen(arguments=self.arguments))],
            sample=self.template is None and bool(self.query),
        )


WAGI_ARGV: Final = 'executor = { type = "wagi", argv = "{}" }'

ARGUMENTS: Final = (
    Arguments("the path, then the query's parts", None, "/a", "x=1&y", ["/a", "x=1", "y"]),
    Arguments("no query leaves an empty one", None, "/a/b", "", ["/a/b", ""]),
    Arguments("nothing is decoded", "${SCRIPT_NAME} ${ARGS}", "/%20", "x=%20+", ["/%20", "x=%20+"]),
    Arguments("two spaces hold an empty one", "p  ${ARGS}", "/", "x", ["p", "", "x"]),
    Arguments(
        "a placeholder may stand twice", "p ${SCRIPT_NAME}${SCRIPT_NAME}", "/a", "", ["p", "/a/a"]
    ),
    Arguments("an empty template is one", "", "/a", "x", [""]),
    Arguments("other words are text", "$ARGS ${args}", "/a", "x", ["$ARGS", "${args}"]),
)

# Environment

ENVIRONMENT: Final[Mapping[str, str]] = {
    "AUTH_TYPE": "",
    "CONTENT_LENGTH": "5",
    "CONTENT_TYPE": "",
    "GATEWAY_INTERFACE": "CGI/1.1",
    "PATH_INFO": "/b%20r",  # Spin's own value, of the same name, comes last
    "PATH_TRANSLATED": "/b r",
    "QUERY_STRING": "q=%31",
    "REMOTE_ADDR": "127.0.0.1",
    "REMOTE_HOST": "127.0.0.1",
    "REMOTE_USER": "",
    "REQUEST_METHOD": "POST",
    "SCRIPT_NAME": "/base/foo",  # the route without its wildcard
    "SERVER_NAME": "example.com",
    "SERVER_PORT": "81",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "SERVER_SOFTWARE": "WAGI/1",
    "X_BASE_PATH": "/base",
    "X_COMPONENT_ROUTE": "/foo",
    "X_FULL_URL": "http://example.com:81/base/foo/b%20r?q=%31",
    "X_MATCHED_ROUTE": "/base/foo/...",
    "X_RAW_COMPONENT_ROUTE": "/foo/...",
    "X_RAW_PATH_INFO": "/b%20r",
}
"""Of a POST of five bytes for /base/foo/b%20r?q=%31 on example.com:81, by the route /foo/... below
/base; besides the headers and the client's address and port."""

TRANSLATED: Final[Mapping[str, str]] = {
    "/%C3%A9": "/é",
    "/%E9": "/\ufffd",  # not UTF-8
    "/%00": "/\ufffd",  # no variable can hold a NUL
    "/%zz%2": "/%zz%2",
    "/a+b": "/a+b",
}
"""Paths and their PATH_TRANSLATED."""

SERVERS: Final[Mapping[str, tuple[str, str]]] = {
    "h": ("h", "80"),
    "h:8080": ("h", "8080"),
    "h:": ("h", "80"),
    "[::1]": ("[::1]", "80"),
    "[::1]:81": ("[::1]", "81"),
}
"""Hosts and their SERVER_NAME and SERVER_PORT."""


ENVIRONMENT_APP: Final = App(
    "environment",
    manifest_v1("/base", ["/foo/..."], wagi=True),
    ["wagi_probe"],
    [
        Exchange(
            "everything",
            Sent("/base/foo/b%20r?q=%31", method="POST", host="example.com:81", body=b"hello"),
            seen=Seen(environment=ENVIRONMENT, body=b"hello"),
        ),
        *(
            Exchange(
                "PATH_TRANSLATED is decoded, PATH_INFO is not",
                Sent(f"/base/foo{rest}"),
                seen=Seen(environment={"PATH_INFO": rest, "PATH_TRANSLATED": translated}),
            )
            for rest, translated in TRANSLATED.items()
        ),
        *(
            Exchange(
                f"host {host}",
                Sent("/base/foo", host=host),
                seen=Seen(environment={"SERVER_NAME": name, "SERVER_PORT": port}),
            )
            for host, (name, port) in SERVERS.items()
        ),
        Exchange(
            "no host",
            Sent("/base/foo", host=None),
            seen=Seen(
                environment={
                    "SERVER_NAME": "localhost",
                    "SERVER_PORT": "80",
                    "SERVER_PROTOCOL": "HTTP/1.0",
                    "HTTP_HOST": None,
                    "CONTENT_LENGTH": "0",
                }
            ),
        ),
        *(
            Exchange(
                f"{method} is passed on",
                Sent("/base/foo", method=method),
                seen=Seen(environment={"REQUEST_METHOD": method}),
            )
            for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "TRACE")
        ),
    ],
    sample=True,
)

# Output

INSUFFICIENT: Final = b"Exactly one of 'location' or 'content-type' must be specified"


@dataclass(frozen=True, slots=True)
class Output:
    """What a program writes, and the response."""

    rule: str
    stdout: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def exchange(self) -> Exchange:
        sent = Sent("/?mode=raw", method="POST", body=self.stdout)
        return Exchange(self.rule, sent, self.status, self.body, self.headers)


_A_B: Final = {"content-type": "a/b"}
OUTPUTS: Final = (
    # The block of headers ends at the first blank line.
    Output("lines end in LF", b"Content-Type: a/b\n\nhi\n", 200, _A_B, b"hi\n"),
    Output("or in CR LF, not in the body", b"content-type: a/b\r\n\r\nx\r\n\r\n", 200, _A_B,
           b"x\r\n\r\n"),
    Output("CR counts for nothing", b"content-type:a/b\n\r\r\nx", 200, _A_B, b"x"),
    Output("not even in a name", b"co\rntent-type: a/b\n\n", 200, _A_B),
    Output("LF at the start counts for nothing", b"\ncontent-type: a/b\n\n", 200, _A_B),
    # It needs content-type, status or location.
    Output("a status suffices", b"status: 404\n\nx", 404, {}, b"x"),
    Output("a location suffices", b"location: /x\n\n", 302, {"location": "/x"}),
    Output("none of the three", b"x: 1\n\nbody", 500, {}, INSUFFICIENT),
    Output("no blank line", b"content-type: a/b\nbody", 500, {}, INSUFFICIENT),
    Output("a blank line first", b"\n\ncontent-type: a\n\n", 500, {}, INSUFFICIENT),
    # What the status is.
    Output("a status with its reason", b"Status: 404 Not Found\n\n", 404),
    Output("a status that is no number", b"status: abc\n\nx", 502, {}, b"x"),
    Output("an empty status", b"status:\n\n", 502),
    Output("too small a status", b"status: 99\n\n", 502),
    Output("a status that ends nothing", b"status: 101\n\n", 502),
    Output("too big a status", b"status: 600\n\n", 502),
    Output("too long a status", b"status: 2000\n\n", 502),
    Output("location, then status", b"location: /x\nstatus: 301\n\n", 301, {"location": "/x"}),
    Output("status, then location", b"status: 301\nlocation: /x\n\n", 301, {"location": "/x"}),
    # The other headers.
    Output("other headers, without space around", b"content-type: a/b\nX-Y:  z: q \n\n", 200,
           {"content-type": "a/b", "x-y": "z: q"}),
    Output("of repeated ones the last", b"x: 1\nX: 2\nstatus: 200\n\n", 200, {"x": "2"}),
    Output("none that frame the response",
           b"status: 200\ncontent-length: 99\nTransfer-Encoding: chunked\nconnection: x\n\nb",
           200, {}, b"b"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line of the header block that is passed over, with a word in the log."""

    rule: str
    line: bytes
    reason: str


SKIPPED: Final = (
    Skipped("no colon", b"no colon", "line without colon: 'no colon'"),
    Skipped("a name that is not ASCII", b"b\xc3\xa9: x", "bad header name: 'bé'"),
    Skipped("a space in a name", b"a b: x", "bad header name: 'a b'"),
    Skipped("no name", b": x", "bad header name: ''"),
)


@dataclass(frozen=True, slots=True)
class Unusable:
    """Output that is no response: 500, with the reason in the log."""

    rule: str
    stdout: bytes
    reason: str


UNUSABLE: Final = (
    Unusable("nothing", b"", "wrote nothing to stdout"),
    Unusable("headers that are not UTF-8", b"status: 200\nx: \xff\n\n", "not UTF-8"),
    Unusable("a NUL", b"status: 200\nx: a\0b\n\n", "not visible ASCII"),
    Unusable("not ASCII", b"status: 200\nx: \xc3\xa9\n\n", "not visible ASCII"),
    Unusable("a control character", b"status: 200\nlocation: a\x7f\n\n", "not visible ASCII"),
)

OUTPUT_APP: Final = App(
    "output",
    manifest_v1("/", ["/..."], wagi=True),
    ["wagi_probe"],
    [
        *(row.exchange() for row in OUTPUTS),
        *(
            Output(row.rule, b"status: 200\n" + row.line + b"\n\nx", 200, {}, b"x").exchange()
            for row in SKIPPED
        ),
        *(Output(row.rule, row.stdout, 500).exchange() for row in UNUSABLE),
    ],
    [row.reason for row in (*SKIPPED, *UNUSABLE)],
    sample=True,
)

# How the program ends

ENDS_APP: Final = App(
    "how a program ends",
    manifest_v1("/", ["/..."], wagi=True),
    ["wagi_probe"],
    [
        Exchange("it returns", Sent("/?mode=normal"), 200, b"normal\n"),
        Exchange("proc_exit(0) is a success", Sent("/?mode=exit&code=0"), 200, b"normal\n"),
        Exchange("another code is none", Sent("/?mode=exit&code=1"), 500, b""),
        Exchange("nor is 255", Sent("/?mode=exit&code=255"), 500, b""),
        Exchange("a trap", Sent("/?mode=trap"), 500, b""),
        Exchange("no output", Sent("/?mode=empty"), 500, b""),
        Exchange("the next one is well", Sent("/"), 200),
    ],
    ["wrote nothing to stdout", "GET / failed: "],
    sample=True,
)

ENTRYPOINT_APP: Final = App(
    "another entrypoint",
    manifest_v1(
        "/", ["/..."], wagi=True, executor='executor = { type = "wagi", entrypoint = "run" }'
    ),
    ["wagi_probe"],
    [Exchange("is called", Sent("/?mode=normal"), 200, b"run\n")],
    sample=True,
)

VERSION_2_APP: Final = App(
    "wagi in version 2",
    manifest_v2("/base", ["/foo/:id/..."], wagi=True),
    ["wagi_probe"],
    [
        Exchange(
            "the route stands for the script",
            Sent("/base/foo/7/x?a&b"),
            seen=Seen(
                arguments=["/base/foo/7/x", "a", "b"],
                environment={
                    "SCRIPT_NAME": "/base/foo/:id",
                    "X_RAW_PATH_INFO": "/x",
                    "X_BASE_PATH": "/",
                    "X_PATH_MATCH_ID": "7",
                },
            ),
        )
    ],
)

WAGI_APPS: Final = (
    *(row.app() for row in ARGUMENTS),
    ENVIRONMENT_APP,
    OUTPUT_APP,
    ENDS_APP,
    ENTRYPOINT_APP,
    VERSION_2_APP,
)
"""Sources: Spin 1.5 crates/http/src/wagi/mod.rs, crates/trigger-http/src/wagi.rs."""
