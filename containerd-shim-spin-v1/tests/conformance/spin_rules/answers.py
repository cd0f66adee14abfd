"""What clients get, whatever the component: statuses, methods, and paths that are Spin's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from spin_rules.apps import manifest_v1, manifest_v2
from spin_rules.exchange import App, Exchange, Seen, Sent

# Paths below /.well-known/spin/ reach no component.

RESERVED: Final[Mapping[str, tuple[int, bytes]]] = {
    "/.well-known/spin/health": (200, b"OK"),
    "/.well-known/spin/health/": (404, b""),
    "/.well-known/spin/": (404, b""),
    "/.well-known/spin/other": (404, b""),
    "/.well-known/spin/info/x": (404, b""),
}
"""Paths, statuses and bodies."""

NOT_RESERVED: Final = ("/.well-known/spin", "/.well-known/spinx", "/x/.well-known/spin/")

INFO: Final = b'{\n  "name": "rules",\n  "version": "1.2.3"\n}'


def _reserved(version: int) -> App:
    make = manifest_v1 if version == 1 else manifest_v2
    return App(
        f"reserved paths, version {version}",
        make("/", ["/..."]),
        ["mirror"],
        [
            *(Exchange(path, Sent(path), *answer) for path, answer in RESERVED.items()),
            Exchange(
                "what the app is, as JSON",
                Sent("/.well-known/spin/info"),
                200,
                INFO,
                {"content-type": "application/json"},
            ),
            *(
                Exchange(f"{method} is as good", Sent("/.well-known/spin/health", method), 200)
                for method in ("HEAD", "POST", "PROPFIND")
            ),
            Exchange("nor does it need a host", Sent("/.well-known/spin/health", host=None), 200),
            Exchange("nor a good one", Sent("/.well-known/spin/health", host="a b"), 200),
            *(Exchange(path, Sent(path), seen=Seen("c0")) for path in NOT_RESERVED),
        ],
        sample=True,
    )


# Methods that the Spin executor has no value for are 405; WAGI and static responses take all.

METHODS: Final = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
OTHER_METHODS: Final = ("TRACE", "PROPFIND", "LOCK", "MKCOL")

METHODS_APP: Final = App(
    "methods",
    manifest_v2(
        "/",
        ["/..."],
        more="""
[[trigger.http]]
route = "/wagi"
component = { source = "wagi_probe.wasm" }
executor = { type = "wagi" }
[[trigger.http]]
route = "/static"
static_response = { status_code = 418, headers = { X-A = "b" }, body = "teapot" }
[[trigger.http]]
route = "/static/least"
static_response = {}
[[trigger.http]]
route = { private = true }
component = { source = "mirror.wasm" }
""",
    ),
    ["mirror", "wagi_probe"],
    [
        *(
            Exchange(f"{m} is passed on", Sent("/a?b=%2F", m), seen=Seen("c0", f"{m} /a?b=%2F"))
            for m in METHODS
        ),
        Exchange("HEAD has no body", Sent("/", "HEAD"), 200, b""),
        Exchange("the body is", Sent("/", "POST", body=b"a\nb"), seen=Seen("c0", body=b"a\nb")),
        *(Exchange(f"{m} is 405", Sent("/", m), 405, b"") for m in OTHER_METHODS),
        *(Exchange(f"{m} by WAGI", Sent("/wagi", m), 200, b"normal\n") for m in OTHER_METHODS),
        *(
            Exchange(f"{m}, static", Sent("/static", m), 418, b"teapot", {"x-a": "b"})
            for m in (*METHODS, *OTHER_METHODS)
        ),
        Exchange("a static response is 200", Sent("/static/least"), 200, b""),
        Exchange("which takes a bad host, too", Sent("/static/least", host="a b"), 200),
    ],
    sample=True,
)

NO_ROUTE_APP: Final = App(
    "no route",
    manifest_v1("/", ["/only"]),
    ["mirror"],
    [
        Exchange("is an empty 404", Sent(path, method), 404, b"", {"content-length": "0"})
        for path in ("/", "/other", "/only/more", "/onl")
        for method in ("GET", "POST", "PROPFIND")
    ],
)

PRIVATE_APP: Final = App(
    "only a private route",
    """\
spin_manifest_version = 2
[application]
name = "rules"
[[trigger.http]]
route = { private = true }
component = "c0"
[component.c0]
source = "mirror.wasm"
""",
    ["mirror"],
    [
        Exchange("nothing is served", Sent("/"), 404, b""),
        Exchange(
            "and the app has no version",
            Sent("/.well-known/spin/info"),
            200,
            b'{\n  "name": "rules"\n}',
        ),
    ],
    sample=True,
)

# Statuses. Spin makes 500 of what is outside 100 to 600; so do we of those that no response to a
# request can have, below 200 and 600 itself.

STATUSES: Final[Mapping[int, int]] = {
    200: 200, 201: 201, 204: 204, 299: 299, 301: 301, 304: 304, 404: 404, 418: 418, 599: 599,
    0: 500, 99: 500, 100: 500, 101: 500, 199: 500, 600: 500, 601: 500, 999: 500, 65535: 500,
}  # fmt: skip
"""The component's, and the response's."""

_PROBE: Final = manifest_v1("/", ["/..."]).replace("mirror", "probe")
STATUSES_APP: Final = App(
    "statuses",
    _PROBE,
    ["probe"],
    [
        *(
            Exchange(f"status {code} is {status}", Sent(f"/status?code={code}"), status)
            for code, status in STATUSES.items()
        ),
        Exchange("neither headers nor body", Sent("/no-body"), 200, b"", {"content-length": "0"}),
        Exchange("of duplicates the last", Sent("/header-dup"), 200, None, {"x-dup": "last"}),
        Exchange("a trap is an empty 500", Sent("/trap"), 500, b""),
        Exchange("so is an end by itself", Sent("/exit?code=0"), 500, b""),
        Exchange("the next one is well", Sent("/status?code=200"), 200),
    ],
    ["GET /trap failed: ", "GET /exit failed: "],
    sample=True,
)

ANSWER_APPS: Final = (
    _reserved(1),
    _reserved(2),
    METHODS_APP,
    NO_ROUTE_APP,
    PRIVATE_APP,
    STATUSES_APP,
)
"""Sources: Spin 1.5 crates/trigger-http/src/{lib,spin}.rs, Spin 3.6 crates/trigger-http/src."""
