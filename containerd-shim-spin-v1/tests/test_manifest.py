from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_spin_v1.manifest.model import (
    AppManifest,
    Build,
    Component,
    Executor,
    FileGlob,
    FilePlacement,
    FileSource,
    HttpTrigger,
    OtherTrigger,
    RedisTrigger,
    UrlSource,
    Variable,
)
from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.manifest.templates import Template, literal, parse_template
from containerd_shimkit.errors import ExitCode, ManifestError
from spin_rules.manifest_v1 import FAULTS_V1, FULL_V1, HEAD_V1, HELLO_V1, ROUTE_V1
from spin_rules.manifests import HEX, Fault

DATABASES = tuple(map(literal, ("redis://*:*", "mysql://*:*", "postgres://*:*")))


LABEL = 'component[0] ("hello")'


def refusal(text: str) -> str:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text)
    assert caught.value.exit_code == ExitCode.MANIFEST
    return str(caught.value)


def test_every_field() -> None:
    assert parse_manifest(FULL_V1) == AppManifest(
        manifest_version=1,
        name="app",
        version="1.0.0",
        description="what it does",
        authors=("A <a@example.com>", "B"),
        namespace="old",
        http_base="/base",
        triggers=(
            HttpTrigger(
                id="trigger-one",
                component="one",
                route="/one/...",
                executor=Executor("wagi", "run", "a ${ARGS}"),
            ),
            HttpTrigger(id="trigger-two", component="two", route="/two"),
        ),
        variables={
            "token": Variable(required=True, default=None, secret=True),
            "greeting": Variable(required=False, default="hi", secret=False),
            "empty": Variable(required=False, default="", secret=False),
        },
        components=(
            Component(
                id="one",
                description="first",
                source=UrlSource("https://example.com/one.wasm", HEX),
                files=(FileGlob("static/**/*"), FilePlacement("assets", "/assets")),
                exclude_files=("static/*.key",),
                allowed_outbound_hosts=(
                    literal("redis://redis:6379"),
                    literal("http://example.com"),
                    literal("https://example.com"),
                ),
                hosts_field="allowed_outbound_hosts",
                key_value_stores=("default", "mixed_CASE_w0rds"),
                sqlite_databases=("default",),
                ai_models=("llama2-chat",),
                environment={"NAME": "a=b"},
                variables={"message": parse_template("{{ greeting }}, {{ token }}")},
                build=Build(("make",), "src", ("**/*.rs",)),
            ),
            Component(
                id="two",
                source=FileSource("two.wasm"),
                allowed_outbound_hosts=DATABASES,
                hosts_field="allowed_http_hosts",
            ),
        ),
    )


@pytest.mark.parametrize(
    "line",
    ['spin_version = "1"', 'spin_manifest_version = "1"', "spin_version = 1",
     "spin_manifest_version = 1"],
)  # fmt: skip
def test_version_1(line: str) -> None:
    text = HEAD_V1.replace('spin_manifest_version = "1"', line)
    assert parse_manifest(text + HELLO_V1 + ROUTE_V1).manifest_version == 1


@pytest.mark.parametrize(
    ("executor", "expected"),
    [
        pytest.param("", Executor("spin"), id="none"),
        pytest.param('{ type = "spin" }', Executor("spin"), id="spin"),
        pytest.param('{ type = "http" }', Executor("spin"), id="http"),
        pytest.param(
            '{ type = "wagi" }', Executor("wagi", "_start", "${SCRIPT_NAME} ${ARGS}"), id="wagi"
        ),
        pytest.param(
            '{ type = "wagi", argv = "" }', Executor("wagi", "_start", ""), id="wagi, no arguments"
        ),
    ],
)
def test_executor(executor: str, expected: Executor) -> None:
    text = HEAD_V1 + HELLO_V1 + ROUTE_V1 + (f"executor = {executor}" if executor else "")
    assert parse_manifest(text).triggers == (
        HttpTrigger(id="trigger-hello", component="hello", route="/hello", executor=expected),
    )


def test_redis_trigger() -> None:
    text = HEAD_V1.replace('type = "http", base = "/"', 'type = "redis", address = "redis://r"')
    app = parse_manifest(
        f"{text}{HELLO_V1}trigger = {{ channel = 'c', executor = {{type='spin'}} }}"
    )
    assert app.triggers == (
        RedisTrigger(
            id="trigger-hello", component="hello", channel="c", address=literal("redis://r")
        ),
    )


def test_unknown_trigger_type_keeps_its_settings() -> None:
    text = HEAD_V1.replace('type = "http", base = "/"', 'type = "timer", speed = 3')
    app = parse_manifest(text + HELLO_V1 + "trigger = { interval = 7 }")
    assert app.trigger_settings == {"timer": {"speed": 3}}
    assert app.triggers == (
        OtherTrigger(type="timer", id="trigger-hello", component="hello", settings={"interval": 7}),
    )
    assert app.triggers[0].where == "spin.toml:4:1: trigger"


def test_entries_know_their_place() -> None:
    """What is wrong with an entry may be found only later, when its file is not there."""
    app = parse_manifest(FULL_V1, "app.toml")
    assert app.components[0].where == 'app.toml:20:1: component[0] ("one")'
    assert [entry.where for entry in app.components[0].files] == [
        'app.toml:23:10: component[0] ("one").files[0]',
        'app.toml:23:25: component[0] ("one").files[1]',
    ]


@pytest.mark.parametrize(
    ("lines", "hosts", "field"),
    [
        pytest.param("", DATABASES, "allowed_http_hosts", id="neither: every database"),
        pytest.param("allowed_outbound_hosts = []", (), "allowed_outbound_hosts", id="newer"),
        pytest.param(
            "allowed_http_hosts = ['h:8080']",
            (*DATABASES, literal("http://h:8080"), literal("https://h:8080")),
            "allowed_http_hosts",
            id="older",
        ),
        pytest.param(
            "allowed_http_hosts = ['h']\nallowed_outbound_hosts = ['redis://r']",
            (literal("redis://r"), literal("http://h"), literal("https://h")),
            "allowed_outbound_hosts",
            id="both",
        ),
    ],
)
def test_hosts(lines: str, hosts: tuple[Template, ...], field: str) -> None:
    component = parse_manifest(f"{HEAD_V1}{HELLO_V1}{lines}\n{ROUTE_V1}").components[0]
    assert (component.allowed_outbound_hosts, component.hosts_field) == (hosts, field)


@pytest.mark.parametrize("fault", FAULTS_V1, ids=str)
def test_fault_is_refused(fault: Fault) -> None:
    assert fault.message in refusal(fault.text)


@pytest.mark.parametrize("route", ["/", "/...", "/a/b/", "/a/.../", "/a...", "/:x", "/%20", "/{a}"])
def test_good_route(route: str) -> None:
    (trigger,) = parse_manifest(HEAD_V1 + HELLO_V1 + ROUTE_V1.replace("/hello", route)).triggers
    assert trigger == HttpTrigger(id="trigger-hello", component="hello", route=route)


def test_duplicate_id_names_both() -> None:
    assert refusal(HEAD_V1 + HELLO_V1 + ROUTE_V1 + HELLO_V1 + ROUTE_V1) == (
        'spin.toml:11:1: component[1] ("hello").id = "hello": component[0] has this id already'
    )


def test_what_is_written_as_in_version_2() -> None:
    text = (
        HEAD_V1 + "[application]\nname = 'x'\n" + HELLO_V1 + "variables = { a = '' }\n" + ROUTE_V1
    )
    assert refusal(text).split("\n") == [
        "spin.toml:5:1: application: is of version 2; for that, write `spin_manifest_version = 2`",
        f"spin.toml:10:1: {LABEL}.variables: is called `config` in version 1",
    ]


def test_no_components() -> None:
    assert refusal(HEAD_V1) == "spin.toml:1:1: required field `component` is missing"
    assert "must be an array of tables [[component]], not a table" in refusal(
        HEAD_V1 + HELLO_V1.replace("[[component]]", "[component]")
    )


def test_undeclared_variable_suggests_the_nearest() -> None:
    text = f"{HEAD_V1}{HELLO_V1}config.a = '{{{{ tokn }}}}'\n{ROUTE_V1}"
    text += "[variables.token]\nrequired = true"
    assert refusal(text) == (
        f'spin.toml:8:8: {LABEL}.config.a = "{{{{ tokn }}}}": variable `tokn` is not declared; '
        "did you mean `token`?"
    )


def test_several_faults_stand_in_the_order_of_the_text() -> None:
    text = HEAD_V1.replace('"app"', "1") + HELLO_V1 + "x = 1\nfiles = 2\n" + ROUTE_V1
    assert [line.split(": ")[0] for line in refusal(text).split("\n")] == [
        "spin.toml:2:1",
        "spin.toml:8:1",
        "spin.toml:9:1",
    ]


def test_many_faults_are_counted() -> None:
    lines = refusal(
        "".join(f"x{i} = 1\n" for i in range(20)) + HEAD_V1 + HELLO_V1 + ROUTE_V1
    ).split("\n")
    assert len(lines) == 11
    assert lines[-1] == "spin.toml: and 10 more"


def test_syntax_error_names_the_file() -> None:
    assert refusal("name = ").startswith("spin.toml:1:8: invalid TOML: ")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(ManifestError, match=r"^spin.toml:"):
        parse_manifest(text)


@given(st.data())
def test_any_mutilation_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever value any field has, the answer is a manifest or a ManifestError."""
    lines = FULL_V1.split("\n")
    index = data.draw(st.integers(0, len(lines) - 1))
    name = lines[index].partition(" = ")[0]
    value = data.draw(st.sampled_from(["1", "true", "''", "[]", "{}", "[[1]]", "[{}]", "{a={}}"]))
    lines[index] = f"{name} = {value}"
    found = "spin.toml:"
    try:
        parse_manifest("\n".join(lines))
    except ManifestError as exc:
        found = str(exc)
    assert all(line.startswith("spin.toml:") for line in found.split("\n"))
