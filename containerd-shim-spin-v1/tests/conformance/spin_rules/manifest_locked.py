"""The locked form of an app: JSON that ``spin`` writes.

Source: Spin 3.6 crates/locked-app/src/locked.rs.
"""

from __future__ import annotations

import base64
import copy
import json
from typing import Any, Final

from spin_rules.manifests import Fault

DIGEST: Final = "sha256:" + "0123456789abcdef" * 4
FULL_LOCKED: Final[dict[str, Any]] = {
    "spin_lock_version": 1,
    "must_understand": ["host_requirements", "component_host_requirements"],
    "metadata": {
        "name": "app",
        "version": "1.0.0",
        "description": "what it does",
        "authors": ["A"],
        "origin": "file:///spin.toml",
        "triggers": {
            "http": {"base": "/base"},
            "redis": {"address": "redis://{{ host }}"},
            "timer": {"speed": 3},
        },
    },
    "host_requirements": {"local_service_chaining": "required", "unheard_of": "optional"},
    "variables": {"host": {"default": "h"}, "token": {"secret": True, "description": "what for"}},
    "triggers": [
        {
            "id": "one",
            "trigger_type": "http",
            "trigger_config": {
                "component": "hello",
                "route": "/a/...",
                "executor": {"type": "wagi", "argv": ""},
            },
        },
        {
            "id": "two",
            "trigger_type": "redis",
            "trigger_config": {"component": "hello", "channel": "c"},
        },
        {
            "id": "three",
            "trigger_type": "timer",
            "trigger_config": {"component": "hello", "interval": 7},
        },
    ],
    "components": [
        {
            "id": "hello",
            "metadata": {
                "description": "first",
                "allowed_outbound_hosts": ["http://{{ host }}"],
                "key_value_stores": ["default"],
                "databases": ["db"],
                "ai_models": ["m"],
                "build": {"command": "make"},
            },
            "source": {"content_type": "application/wasm", "source": "file:///app/he%6Clo.wasm"},
            "env": {"A": "b"},
            "files": [
                {"source": "file:///assets/hello", "path": "/"},
                {"digest": DIGEST.upper().replace("SHA", "sha"), "path": "/big"},
                {"inline": base64.b64encode(b"small").decode(), "path": "/small"},
            ],
            "config": {"message": "{{ token }}"},
        },
        {"id": "layer", "source": {"content_type": "application/wasm", "digest": DIGEST}},
    ],
}

LOCKED_V1: Final[dict[str, Any]] = {
    "spin_lock_version": 0,
    "metadata": {"name": "app", "trigger": {"type": "http", "base": "/b"}},
    "triggers": [
        {
            "id": "trigger--hello",
            "trigger_type": "http",
            "trigger_config": {"component": "hello", "route": "/x", "executor": {"type": "spin"}},
        }
    ],
    "components": [
        {
            "id": "hello",
            "metadata": {"allowed_http_hosts": ["h"]},
            "source": {"content_type": "application/wasm", "source": "file:///hello.wasm"},
        }
    ],
}

REQUIRED: Final[frozenset[tuple[str | int, ...]]] = frozenset(
    {
        ("spin_lock_version",),
        ("metadata",),
        ("metadata", "name"),
        ("metadata", "triggers", "redis", "address"),
        *(("metadata", "triggers"), ("metadata", "triggers", "redis")),  # a trigger needs them
        *(("variables",), ("variables", "host"), ("variables", "token")),  # templates do
        ("triggers",),
        ("components",),
        *(
            ("triggers", index, key)
            for index in range(3)
            for key in ("id", "trigger_type", "trigger_config")
        ),
        ("triggers", 0, "trigger_config", "component"),
        ("triggers", 0, "trigger_config", "route"),
        ("triggers", 0, "trigger_config", "executor", "type"),
        ("triggers", 1, "trigger_config", "component"),
        ("triggers", 1, "trigger_config", "channel"),
        ("components", 0, "id"),
        ("components", 0, "source"),
        ("components", 0, "source", "source"),
        ("components", 1, "id"),
        ("components", 1, "source"),
        ("components", 1, "source", "digest"),
        *(("components", 0, "files", index, "path") for index in range(3)),
        ("components", 0, "files", 0, "source"),
        ("components", 0, "files", 1, "digest"),
        ("components", 0, "files", 2, "inline"),
    }
)
"""Fields of ``FULL_LOCKED`` without which it is refused; those that no element of a list is."""


def changed(path: tuple[str | int, ...], value: Any) -> str:
    """Return the locked app with one value changed, or removed if it is ``...``."""
    data = copy.deepcopy(FULL_LOCKED)
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(data, indent=1)


_FAULTS: Final[list[tuple[tuple[str | int, ...], Any, str]]] = [
    (("spin_lock_version",), ..., "required field `spin_lock_version` is missing"),
    (("spin_lock_version",), 2, "2:2: spin_lock_version = 2: must be 0 or 1"),
    (("spin_lock_version",), True, "must be 0 or 1"),
    (("must_understand", 0), "magic", 'must_understand[0] = "magic": this shim does not'),
    (("host_requirements", "unheard_of"), "required", "host_requirements.unheard_of: the app"),
    (("metadata", "name"), ..., "metadata: required field `name` is missing"),
    (("metadata", "triggers", "http", "base"), "x", 'did you mean "/x"?'),
    (("metadata", "triggers", "redis"), {}, "required field `address` is missing"),
    (("metadata", "triggers", "redis"), {"address": "{{ nope }}"}, "`nope` is not declared"),
    (("variables", "Bad"), {}, "variables.Bad: `B` is not a lower-case letter"),
    (("variables", "host", "default"), 1, "variables.host.default: must be a string"),
    (("triggers",), ..., "required field `triggers` is missing"),
    (("triggers", 0, "trigger_config"), ..., "required field `trigger_config` is missing"),
    (("triggers", 0, "trigger_config", "route"), ..., "required field `route` is missing"),
    (("triggers", 0, "trigger_config", "x"), 1, 'triggers[0] ("one").trigger_config: unknown fie'),
    (("triggers", 0, "trigger_config", "component"), "helo", "did you mean `hello`?"),
    (("triggers", 0, "trigger_dependencies"), {"a": []}, "composes WebAssembly components"),
    (("components",), ..., "required field `components` is missing"),
    (("components", 1, "id"), "hello", "another component has this id already"),
    (("components", 0, "id"), ..., "required field `id` is missing"),
    (("components", 0, "dependencies"), {"a": {}}, "composes WebAssembly components"),
    (("components", 0, "host_requirements"), {"x": "required"}, "host_requirements.x: the app"),
    (("components", 0, "source"), ..., "required field `source` is missing"),
    (("components", 0, "source"), {}, "needs a `source`, a `digest` or `inline` content"),
    (("components", 0, "source", "source"), "https://x", "must be a file:// URL of the image"),
    (("components", 0, "source", "source"), "file:///a/../b", "must not contain `..`"),
    (("components", 1, "source", "digest"), "md5:0", "must be `sha256:` and 64"),
    (("components", 0, "files", 2, "inline"), "?", "must be base64"),
    (("components", 0, "files", 0, "path"), "x", "destination must be absolute"),
    (("components", 0, "files", 1, "path"), "/../x", "destination must not contain `..`"),
    (("components", 0, "files", 0, "path"), ..., "required field `path` is missing"),
    (("components", 0, "env", "A=B"), "", "must not be empty nor contain `=`"),
    (("components", 0, "config", "message"), "{{ nope }}", "variable `nope` is not declared"),
    (("components", 0, "metadata", "allowed_outbound_hosts"), ["x"], "must be scheme://host"),
]

FAULTS_LOCKED: Final = [
    Fault(
        f"{'.'.join(map(str, path))} = {json.dumps(value) if value is not ... else 'nothing'}",
        changed(path, value),
        message,
        message.startswith(("2:2: ", 'must_understand[0] = "magic"')),
    )
    for path, value, message in _FAULTS
]


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the paths of everything in a JSON value."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    found = []
    for key, inner in items:
        found += [(*path, key), *paths(inner, (*path, key))]
    return found
