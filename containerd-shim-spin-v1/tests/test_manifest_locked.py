from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_spin_v1.manifest.model import (
    AppManifest,
    Component,
    Content,
    Executor,
    FileContent,
    FilePlacement,
    FileSource,
    HttpTrigger,
    OtherTrigger,
    RedisTrigger,
    Variable,
)
from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.manifest.templates import literal, parse_template
from containerd_shimkit.errors import ManifestError

DIGEST = "sha256:" + "0123456789abcdef" * 4
LOCKED: dict[str, Any] = {
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

VERSION_1: dict[str, Any] = {
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


def test_every_field() -> None:
    assert parse_manifest(json.dumps(LOCKED), "spin.lock") == AppManifest(
        manifest_version=2,
        name="app",
        version="1.0.0",
        description="what it does",
        authors=("A",),
        http_base="/base",
        trigger_settings={"timer": {"speed": 3}},
        variables={
            "host": Variable(required=False, default="h", secret=False),
            "token": Variable(required=True, default=None, secret=True, description="what for"),
        },
        triggers=(
            HttpTrigger(
                id="one", component="hello", route="/a/...", executor=Executor("wagi", argv="")
            ),
            RedisTrigger(
                id="two",
                component="hello",
                channel="c",
                address=parse_template("redis://{{ host }}"),
            ),
            OtherTrigger(type="timer", id="three", component="hello", settings={"interval": 7}),
        ),
        components=(
            Component(
                id="hello",
                description="first",
                source=FileSource("app/hello.wasm"),
                files=(
                    FilePlacement("assets/hello", "/"),
                    FileContent(Content(DIGEST), "/big"),
                    FileContent(Content(None, b"small"), "/small"),
                ),
                environment={"A": "b"},
                variables={"message": parse_template("{{ token }}")},
                allowed_outbound_hosts=(parse_template("http://{{ host }}"),),
                key_value_stores=("default",),
                sqlite_databases=("db",),
                ai_models=("m",),
            ),
            Component(id="layer", source=Content(DIGEST)),
        ),
    )


def test_lock_of_spin_1_has_the_rules_of_version_1() -> None:
    app = parse_manifest(json.dumps(VERSION_1), "spin.json")
    assert (app.manifest_version, app.http_base, app.version) == (1, "/b", None)
    (component,) = app.components
    assert component.hosts_field == "allowed_http_hosts"
    assert component.allowed_outbound_hosts == tuple(
        map(
            literal,
            ("redis://*:*", "mysql://*:*", "postgres://*:*", "http://h", "https://h"),
        )
    )


def changed(path: tuple[str | int, ...], value: Any) -> str:
    """Return the locked app with one value changed, or removed if it is ``...``."""
    data = copy.deepcopy(LOCKED)
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(data, indent=1)


FAULTS = [
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


@pytest.mark.parametrize(("path", "value", "message"), FAULTS)
def test_fault_is_refused(path: tuple[str | int, ...], value: Any, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(changed(path, value), "spin.lock")
    assert message in str(caught.value)


def test_unknown_fields_are_left_alone() -> None:
    for path in (
        (),
        ("metadata",),
        ("components", 0),
        ("components", 0, "source"),
        ("triggers", 0),
    ):
        parse_manifest(changed((*path, "later"), {"x": 1}), "spin.lock")


def test_syntax_error_names_the_place() -> None:
    with pytest.raises(ManifestError, match=r"^spin\.lock:2:1: invalid JSON: "):
        parse_manifest("{\n", "spin.lock")


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    found = []
    for key, inner in items:
        found += [(*path, key), *_paths(inner, (*path, key))]
    return found


@given(
    st.sampled_from(_paths(LOCKED)),
    st.sampled_from([None, 1, 1.5, True, "", "/", [], {}, [[1]], [{}], {"a": {}}, {"a": [{}]}]),
)
def test_any_mutilation_is_read_or_refused(path: tuple[str | int, ...], value: Any) -> None:
    found = "spin.lock:"
    try:
        parse_manifest(changed(path, value), "spin.lock")
    except ManifestError as exc:
        found = str(exc)
    assert all(line.startswith("spin.lock:") for line in found.split("\n"))
