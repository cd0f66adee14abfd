from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_spin_v1.manifest.model import (
    AppManifest,
    Build,
    CommandTrigger,
    Component,
    Executor,
    FileGlob,
    FilePlacement,
    FileSource,
    HttpTrigger,
    OtherTrigger,
    RedisTrigger,
    RegistrySource,
    StaticResponse,
    UrlSource,
    Variable,
)
from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.manifest.templates import literal, parse_template
from containerd_shimkit.errors import ManifestError
from spin_rules.manifest_v2 import FAULTS_V2, FULL_V2, HEAD_V2, HELLO_V2, TRIGGER_V2
from spin_rules.manifests import HEX, Fault


def refusal(text: str) -> str:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text)
    return str(caught.value)


def test_every_field() -> None:
    assert parse_manifest(FULL_V2) == AppManifest(
        manifest_version=2,
        name="app",
        version="1.0.0",
        description="what it does",
        authors=("A <a@example.com>",),
        http_base="/base",
        trigger_settings={"timer": {"speed": 3}},
        variables={
            "token": Variable(required=True, default=None, secret=True, description="what for"),
            "host": Variable(required=False, default="h", secret=False),
        },
        triggers=(
            HttpTrigger(
                id="first",
                component="one",
                route="/one/:id/...",
                executor=Executor("wagi", "_start", "a ${ARGS}"),
            ),
            HttpTrigger(id="one-http-trigger", component="one", route=None),
            HttpTrigger(id="http-trigger1", component="http-trigger1-component", route="/inline"),
            HttpTrigger(
                id="http-trigger2",
                component=None,
                route="/static",
                static_response=StaticResponse(404, {"a-b": "c"}, "no"),
            ),
            RedisTrigger(
                id="one-redis-trigger",
                component="one",
                channel="c",
                address=parse_template("redis://{{ host }}"),
            ),
            RedisTrigger(
                id="redis-trigger1",
                component="one",
                channel="d",
                address=literal("redis://other"),
            ),
            CommandTrigger(id="two-three-command-trigger", component="two-three"),
            OtherTrigger(
                type="timer",
                id="two-three-timer-trigger",
                component="two-three",
                settings={"interval": 7},
            ),
        ),
        components=(
            Component(
                id="one",
                description="first",
                source=UrlSource("https://example.com/one.wasm", HEX),
                files=(FileGlob("static/**/*"), FilePlacement("assets", "/assets")),
                exclude_files=("static/*.key",),
                allowed_outbound_hosts=(
                    parse_template("redis://{{ host }}:*"),
                    literal("https://*.example.com"),
                ),
                key_value_stores=("default", "kebab-case", "snake_case"),
                sqlite_databases=("default",),
                ai_models=("llama2-chat",),
                environment={"NAME": "a=b"},
                variables={"message": parse_template("{{ host }}, {{ token }}")},
                build=Build(("make", "make install"), "src", ("**/*.rs",)),
            ),
            Component(
                id="two-three",
                source=RegistrySource("acme:two", "1.0.0", "example.com"),
                build=Build(("make",), None, ()),
            ),
            Component(
                id="http-trigger1-component",
                source=FileSource("inline.wasm"),
                allowed_outbound_hosts=(literal("http://h:81"), literal("https://h:81")),
            ),
        ),
    )


def test_least() -> None:
    app = parse_manifest(HEAD_V2 + TRIGGER_V2 + HELLO_V2)
    assert (app.version, app.http_base) == (None, "/")
    assert app.component("hello").where == "spin.toml:7:1: component.hello"
    assert app.component("hello").hosts_field == "allowed_outbound_hosts"
    assert app.triggers[0].where == 'spin.toml:4:1: trigger.http[0] ("hello-http-trigger")'
    with pytest.raises(KeyError):
        app.component("other")


def test_several_triggers_of_several_types_for_one_component() -> None:
    text = HEAD_V2 + TRIGGER_V2 + TRIGGER_V2.replace("'/'", "'/b'") + HELLO_V2
    text += "[[trigger.command]]\ncomponent = 'hello'\n"
    assert [(t.id, t.component) for t in parse_manifest(text).triggers] == [
        ("hello-http-trigger", "hello"),
        ("http-trigger1", "hello"),
        ("hello-command-trigger", "hello"),
    ]


def test_made_ids_keep_clear_of_given_ones() -> None:
    given_id = "[[trigger.http]]\nid = 'hello-http-trigger'\nroute = '/x'\ncomponent = 'hello'\n"
    inline = "[[trigger.http]]\nid = 'no label'\nroute = '/i'\ncomponent = { source = 'i' }\n"
    taken = "[component.inline-component1]\nsource = 'x'\n"
    app = parse_manifest(HEAD_V2 + TRIGGER_V2 + given_id + inline + HELLO_V2 + taken)
    assert [trigger.id for trigger in app.triggers] == [
        "http-trigger1", "hello-http-trigger", "no label",
    ]  # fmt: skip
    assert [component.id for component in app.components] == [
        "hello", "inline-component1", "inline-component2",
    ]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS_V2, ids=str)
def test_fault_is_refused(fault: Fault) -> None:
    assert fault.message in refusal(fault.text)


def test_what_is_written_as_in_version_1() -> None:
    text = "spin_manifest_version = 2\nname = 'a'\ntrigger = { type = 'http', base = '/' }\n"
    assert refusal(f"{text}[[component]]\nid = 'x'\n").split("\n") == [
        "spin.toml:1:1: required field `application` is missing",
        "spin.toml:2:1: name: is `application.name` in version 2",
        "spin.toml:3:1: trigger = {...}: must be tables of triggers in version 2, [[trigger.http]]",
        "spin.toml:4:1: component = [...]: must be one table for each in version 2, "
        "[component.<id>]",
    ]


def test_no_trigger() -> None:
    assert refusal(HEAD_V2 + HELLO_V2) == "spin.toml:1:1: required field `trigger` is missing"


@pytest.mark.parametrize(
    ("variable", "host", "message"),
    [
        ("default = 'h'", "http://{{ v }}", None),
        ("default = ''", "http://{{ v }}", None),
        ("default = ''", "{{ v }}", None),
        ("required = true", "{{ v }}", None),
        ("default = 'h/p'", "http://{{ v }}", "it is `http://h/p`: must not have a path"),
        ("default = 'h'", "{{ v }}", "it is `h`: must be scheme://host[:port]"),
        ("default = 's3cret', secret = true", "{{ v }}", "it is no scheme://host[:port]"),
    ],
)
def test_host_with_a_template(variable: str, host: str, message: str | None) -> None:
    """What it comes to is known only if every variable has a default."""
    text = f"{HEAD_V2}{TRIGGER_V2}{HELLO_V2}allowed_outbound_hosts = ['{host}']\n"
    text += f"[variables]\nv = {{ {variable} }}\n"
    if message is None:
        (entry,) = parse_manifest(text).components[0].allowed_outbound_hosts
        assert entry == parse_template(host)
    else:
        assert message in (found := refusal(text))
        assert "s3cret" not in found


def test_several_faults_stand_in_the_order_of_the_text() -> None:
    text = HEAD_V2.replace("'app'", "1") + TRIGGER_V2.replace("'/'", "2") + HELLO_V2 + "files = 3\n"
    assert [line.split(": ")[0] for line in refusal(text).split("\n")] == [
        "spin.toml:3:1",
        "spin.toml:5:1",
        "spin.toml:9:1",
    ]


VALUES: list[Any] = ["1", "true", "''", "'/'", "[]", "{}", "[[1]]", "[{}]", "{a={}}", "{a=[{}]}"]


@given(st.data())
def test_any_mutilation_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever value any field has, the answer is a manifest or a ManifestError."""
    lines = FULL_V2.split("\n")
    index = data.draw(st.integers(1, len(lines) - 1))
    name = lines[index].partition(" = ")[0]
    lines[index] = f"{name} = {data.draw(st.sampled_from(VALUES))}"
    found = "spin.toml:"
    try:
        parse_manifest("\n".join(lines))
    except ManifestError as exc:
        found = str(exc)
    assert all(line.startswith("spin.toml:") for line in found.split("\n"))


@given(st.data())
def test_any_line_may_be_missing(data: st.DataObject) -> None:
    lines = FULL_V2.split("\n")
    del lines[data.draw(st.integers(1, len(lines) - 1))]
    found = "spin.toml:"
    try:
        parse_manifest("\n".join(lines))
    except ManifestError as exc:
        found = str(exc)
    assert found.startswith("spin.toml:")
