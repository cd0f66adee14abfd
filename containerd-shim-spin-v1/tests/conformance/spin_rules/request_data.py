"""What a component is told of a request besides the request itself, by either executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from spin_rules.apps import manifest_v1, manifest_v2
from spin_rules.exchange import CLIENT, App, Exchange, HeaderList, Seen, Sent

NAMES: Final = (
    ("spin-path-info", "PATH_INFO"),
    ("spin-full-url", "X_FULL_URL"),
    ("spin-matched-route", "X_MATCHED_ROUTE"),
    ("spin-base-path", "X_BASE_PATH"),
    ("spin-raw-component-route", "X_RAW_COMPONENT_ROUTE"),
    ("spin-component-route", "X_COMPONENT_ROUTE"),
    ("spin-client-addr", "X_CLIENT_ADDR"),
)
"""In Spin's order: the header, and the variable of the WAGI executor."""


@dataclass(frozen=True, slots=True)
class Told:
    """A route, a request, and the values in the order of ``NAMES``."""

    rule: str
    version: Literal[1, 2]
    base: str
    route: str
    target: str
    path_info: str
    full_url: str
    matched_route: str
    base_path: str
    raw_component_route: str
    component_route: str
    captures: Mapping[str, str] = field(default_factory=dict)
    """By the ends of the names: of the header in lower case, of the variable in upper case."""
    host: str | None = "test"
    sample: bool = False

    @property
    def values(self) -> list[str]:
        return [
            *(self.path_info, self.full_url, self.matched_route, self.base_path),
            *(self.raw_component_route, self.component_route, CLIENT),
        ]

    def headers(self) -> dict[str, str]:
        """Return what the Spin executor adds."""
        pairs = zip((header for header, _ in NAMES), self.values, strict=True)
        more = {
            f"spin-path-match-{name.replace('_', '-').lower()}": value
            for name, value in self.captures.items()
        }
        return dict(pairs) | more

    def environment(self) -> dict[str, str]:
        """Return what the WAGI executor sets."""
        pairs = zip((variable for _, variable in NAMES), self.values, strict=True)
        more = {f"X_PATH_MATCH_{name.upper()}": value for name, value in self.captures.items()}
        return dict(pairs) | more

    def app(self, *, wagi: bool) -> App:
        """Return the app with this route."""
        make = manifest_v1 if self.version == 1 else manifest_v2
        if wagi:
            seen = Seen("c0", environment=self.environment())
        else:
            _, _, target = self.full_url.removeprefix("http://").partition("/")
            headers = {name: [value] for name, value in self.headers().items()}
            seen = Seen("c0", f"GET /{target}", headers)
        return App(
            f"{self.rule}, {'wagi' if wagi else 'spin'}",
            make(self.base, [self.route], wagi=wagi),
            ["wagi_probe" if wagi else "mirror"],
            [Exchange(self.rule, Sent(self.target, host=self.host), seen=seen)],
            sample=self.sample,
        )


TOLD: Final = (
    Told(
        "version 1, everything", 1, "/base", "/foo/...", "/base/foo/b%20r/?q=1&r=%2F",
        "/b%20r/", "http://test/base/foo/b%20r/?q=1&r=%2F",
        "/base/foo/...", "/base", "/foo/...", "/foo", sample=True,
    ),
    Told(
        "version 1, exact", 1, "/", "/foo", "/foo",
        "", "http://test/foo", "/foo", "/", "/foo", "/foo",
    ),
    Told(
        "version 1, slashes at the end stay in what the manifest says", 1, "/base/", "/foo/",
        "/base/foo/", "/", "http://test/base/foo/", "/base/foo", "/base/", "/foo/", "/foo/",
    ),
    Told(
        "version 1, a slash that was added is not told", 1, "/base/", "foo", "/base/foo",
        "", "http://test/base/foo", "/base/foo", "/base/", "foo", "foo",
    ),
    Told(
        "version 1, catch-all", 1, "/", "/...", "/", "/", "http://test/", "/...", "/", "/...", "",
    ),
    Told(
        "version 1, the root has no matched route", 1, "/", "/", "/", "/", "http://test/",
        "", "/", "/", "/",
    ),
    Told(
        "version 1, a question mark with nothing behind it is lost", 1, "/", "/...", "/a?",
        "/a", "http://test/a", "/...", "/", "/...", "",
    ),
    Told(
        "version 1, the port of the host", 1, "/", "/a", "/a",
        "", "http://example.com:8080/a", "/a", "/", "/a", "/a", host="example.com:8080",
    ),
    Told(
        "version 1, no host is localhost", 1, "/", "/a", "/a",
        "", "http://localhost/a", "/a", "/", "/a", "/a", host=None,
    ),
    Told(
        "version 1, the host of a whole URL", 1, "/", "/a", "http://h:81/a",
        "", "http://h:81/a", "/a", "/", "/a", "/a", host=None,
    ),
    Told(
        "version 1, of which Host is the same", 1, "/", "/a", "http://H:81/a",
        "", "http://h:81/a", "/a", "/", "/a", "/a", host="h:81",
    ),
    Told(
        "version 2, the base is part of the route", 2, "/base", "/foo/:id/...",
        "/base/foo/7/x/?q=1", "/x/", "http://test/base/foo/7/x/?q=1",
        "/base/foo/:id/...", "/", "/foo/:id/...", "/foo/:id", {"id": "7"}, sample=True,
    ),
    Told(
        "version 2, names in other letters", 2, "/", "/:User_Id/:b", "/x/Y",
        "", "http://test/x/Y", "/:User_Id/:b", "/", "/:User_Id/:b", "/:User_Id/:b",
        {"User_Id": "x", "b": "Y"},
    ),
    Told(
        "version 2, exact", 2, "/", "/foo", "/foo/",
        "", "http://test/foo/", "/foo", "/", "/foo", "/foo",
    ),
    Told(
        "version 2, no host is localhost", 2, "/", "/a", "/a",
        "", "http://localhost/a", "/a", "/", "/a", "/a", host=None,
    ),
)  # fmt: skip
"""Sources: Spin 1.5 crates/trigger-http/src/lib.rs, Spin 3.6 crates/trigger-http/src/headers.rs."""


@dataclass(frozen=True, slots=True)
class Passed:
    """Headers of a request, and what of them reaches the component.

    headers: values by name, for the Spin executor.  environment: by the WAGI executor.
    """

    rule: str
    sent: HeaderList
    headers: Mapping[str, Sequence[str] | None] = field(default_factory=dict)
    environment: Mapping[str, str | None] = field(default_factory=dict)


def _forged() -> Passed:
    """A client cannot pass for us; Spin leaves its values in, before its own."""
    (told,) = [row for row in TOLD if row.rule == "version 1, catch-all"]
    headers = told.headers()
    names = [name.upper() if index % 2 else name for index, name in enumerate(headers)]
    return Passed(
        "values of ours cannot be forged",
        [(name, "forged") for name in (*names, "spin-path-match-id")],
        {name: [value] for name, value in headers.items()} | {"spin-path-match-id": None},
        told.environment() | {"X_PATH_MATCH_ID": None},
    )


PASSED: Final = (
    _forged(),
    Passed("the host", [], {"host": ["test"]}, {"HTTP_HOST": "test"}),
    Passed(
        "names in lower case; for WAGI in upper case with underscores",
        [("X-Some-Name", "1")], {"x-some-name": ["1"]}, {"HTTP_X_SOME_NAME": "1"},
    ),
    Passed(
        "repeated ones in order; for WAGI the last",
        [("x-a", "1"), ("X-A", "2")], {"x-a": ["1", "2"]}, {"HTTP_X_A": "2"},
    ),
    Passed(
        "others that begin with spin-", [("spin-other", "1")],
        {"spin-other": ["1"]}, {"HTTP_SPIN_OTHER": "1"},
    ),
    Passed(
        "UTF-8; WAGI takes ASCII only", [("x-a", "é")],
        {"x-a": ["é"]}, {"HTTP_X_A": "CORRUPT VALUE"},
    ),
    Passed("a tab", [("x-a", "x\ty")], {"x-a": ["x\ty"]}, {"HTTP_X_A": "x\ty"}),
    Passed("an empty one", [("x-a", "")], {"x-a": [""]}, {"HTTP_X_A": ""}),
    Passed(
        "WAGI hides authorization", [("authorization", "x")],
        {"authorization": ["x"]}, {"HTTP_AUTHORIZATION": None},
    ),
    Passed(
        "WAGI hides connection", [("connection", "x")],
        {"connection": ["x"]}, {"HTTP_CONNECTION": None},
    ),
    Passed(
        "WAGI's CONTENT_TYPE is not the content type", [("content-type", "t/p")],
        {"content-type": ["t/p"]}, {"CONTENT_TYPE": "", "HTTP_CONTENT_TYPE": "t/p"},
    ),
    Passed("but a header of this name", [("content_type", "t/p")], {}, {"CONTENT_TYPE": "t/p"}),
    Passed("of visible ASCII", [("content_type", "é")], {}, {"CONTENT_TYPE": ""}),
)  # fmt: skip


FORGED_MATCH_APP: Final = App(
    "what `:name` stands for cannot be forged",
    manifest_v2("/", ["/:user_id/..."]),
    ["mirror"],
    [
        Exchange(
            "the value of the path",
            Sent("/7/x", headers=[("spin-path-match-user-id", "root"), ("spin-path-match-x", "1")]),
            seen=Seen(
                headers={"spin-path-match-user-id": ["7"], "spin-path-match-x": None},
            ),
        )
    ],
)

OWN_HOSTS: Final = ("c0.spin.internal", "c0.spin.internal:80", "C0.Spin.Internal")
"""Only requests of other components have such a host: from outside it is dropped."""

_NOT_OURS: Final = {"host": None, "spin-full-url": ["http://localhost/a"]}
_NOT_OURS_WAGI: Final = {
    "HTTP_HOST": None,
    "SERVER_NAME": "localhost",
    "X_FULL_URL": "http://localhost/a",
}


def own_hosts_app(*, wagi: bool) -> App:
    """Return the app that is asked by the hosts of its components."""
    seen = Seen(environment=_NOT_OURS_WAGI) if wagi else Seen(headers=_NOT_OURS)
    return App(
        f"hosts of components, {'wagi' if wagi else 'spin'}",
        manifest_v2("/", ["/..."], wagi=wagi),
        ["wagi_probe" if wagi else "mirror"],
        [
            *(Exchange(host, Sent("/a", host=host), seen=seen) for host in OWN_HOSTS),
            *(
                Exchange(f"{host} of a URL", Sent(f"http://{host}/a", host=None), seen=seen)
                for host in OWN_HOSTS
            ),
        ],
        sample=not wagi,
    )


def passed_app(*, wagi: bool) -> App:
    """Return the app that is asked with all of ``PASSED``."""
    return App(
        f"headers of clients, {'wagi' if wagi else 'spin'}",
        manifest_v1("/", ["/..."], wagi=wagi),
        ["wagi_probe" if wagi else "mirror"],
        [
            Exchange(
                row.rule,
                Sent(headers=row.sent),
                seen=Seen(environment=row.environment) if wagi else Seen(headers=row.headers),
            )
            for row in PASSED
        ],
        sample=True,
    )


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that no component is shown."""

    rule: str
    sent: Sent
    status: int
    message: str

    def exchange(self) -> Exchange:
        return Exchange(self.rule, self.sent, self.status, f"{self.message}\n".encode())


REFUSED: Final = (
    Refused("no host", Sent(host=""), 400, "bad Host header b''"),
    Refused("a path", Sent(host="a/b"), 400, "bad Host header b'a/b'"),
    Refused("a space", Sent(host="a b"), 400, "bad Host header b'a b'"),
    Refused("a user", Sent(host="u@h"), 400, "bad Host header b'u@h'"),
    Refused("an open bracket", Sent(host="[::1"), 400, "bad Host header b'[::1'"),
    Refused("a port of letters", Sent(host="h:x"), 400, "bad Host header b'h:x'"),
    Refused("not ASCII", Sent(host="é"), 400, "bad Host header b'\\xc3\\xa9'"),
    Refused("two hosts", Sent(headers=[("Host", "b")]), 400, "bad Host header b'test, b'"),
    Refused(
        "not the host of the URL", Sent("http://other/"), 400,
        "Host header b'test' is not the URL's b'other'",
    ),
    Refused(
        "not its port", Sent("http://test:81/"), 400,
        "Host header b'test' is not the URL's b'test:81'",
    ),
    Refused("no host in the URL", Sent("http://u@h/", host=None), 400, "bad Host header b'u@h'"),
    Refused(
        "a header that is not UTF-8", Sent(headers=[("x-a", b"\xe9")]), 500,
        "header with bytes that are not UTF-8: b'\\xe9'",
    ),
    Refused(
        "half a character", Sent(headers=[("x-a", b"\xc3")]), 500,
        "header with bytes that are not UTF-8: b'\\xc3'",
    ),
    Refused(
        "half a pair", Sent(headers=[("x-a", b"\xed\xa0\x80")]), 500,
        "header with bytes that are not UTF-8: b'\\xed\\xa0\\x80'",
    ),
)  # fmt: skip

REFUSED_APP: Final = App(
    "requests that are refused",
    manifest_v1("/", ["/..."]),
    ["mirror"],
    [row.exchange() for row in REFUSED],
    sample=True,
)
