from __future__ import annotations

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
from spin_rules.manifest_locked import (
    DIGEST,
    FAULTS_LOCKED,
    FULL_LOCKED,
    LOCKED_V1,
    REQUIRED,
    changed,
    paths,
)
from spin_rules.manifests import Fault


def test_every_field() -> None:
    assert parse_manifest(json.dumps(FULL_LOCKED), "spin.lock") == AppManifest(
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
    app = parse_manifest(json.dumps(LOCKED_V1), "spin.json")
    assert (app.manifest_version, app.http_base, app.version) == (1, "/b", None)
    (component,) = app.components
    assert component.hosts_field == "allowed_http_hosts"
    assert component.allowed_outbound_hosts == tuple(
        map(
            literal,
            ("redis://*:*", "mysql://*:*", "postgres://*:*", "http://h", "https://h"),
        )
    )


@pytest.mark.parametrize("fault", FAULTS_LOCKED, ids=str)
def test_fault_is_refused(fault: Fault) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(fault.text, "spin.lock")
    assert fault.message in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [path for path in paths(FULL_LOCKED) if isinstance(path[-1], str)],
    ids=lambda path: ".".join(map(str, path)),
)
def test_field_may_be_missing(path: tuple[str | int, ...]) -> None:
    text = changed(path, ...)
    if path in REQUIRED:
        with pytest.raises(ManifestError):
            parse_manifest(text, "spin.lock")
    else:
        parse_manifest(text, "spin.lock")


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


@given(
    st.sampled_from(paths(FULL_LOCKED)),
    st.sampled_from([None, 1, 1.5, True, "", "/", [], {}, [[1]], [{}], {"a": {}}, {"a": [{}]}]),
)
def test_any_mutilation_is_read_or_refused(path: tuple[str | int, ...], value: Any) -> None:
    found = "spin.lock:"
    try:
        parse_manifest(changed(path, value), "spin.lock")
    except ManifestError as exc:
        found = str(exc)
    assert all(line.startswith("spin.lock:") for line in found.split("\n"))
