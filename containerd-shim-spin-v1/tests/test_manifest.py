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

DIGEST = "0123456789abcdef" * 4

DATABASES = tuple(map(literal, ("redis://*:*", "mysql://*:*", "postgres://*:*")))

HEAD = """\
spin_manifest_version = "1"
name = "app"
version = "1.0.0"
trigger = { type = "http", base = "/" }
"""  # 4 lines
HELLO = """\
[[component]]
id = "hello"
source = "hello.wasm"
"""  # lines 5 to 7
ROUTE = """\
[component.trigger]
route = "/hello"
"""

FULL = f"""\
spin_version = "1"
name = "app"
version = "1.0.0"
description = "what it does"
authors = ["A <a@example.com>", "B"]
namespace = "old"
trigger = {{ type = "http", base = "/base" }}

[variables]
token = {{ required = true, secret = true }}
greeting = {{ default = "hi" }}
empty = {{ default = "" }}

[[component]]
id = "one"
description = "first"
source = {{ url = "https://example.com/one.wasm", digest = "sha256:{DIGEST.upper()}" }}
files = ["static/**/*", {{ source = "assets", destination = "/assets" }}]
exclude_files = ["static/*.key"]
allowed_http_hosts = ["example.com"]
allowed_outbound_hosts = ["redis://redis:6379"]
key_value_stores = ["default", "mixed_CASE_w0rds"]
sqlite_databases = ["default"]
ai_models = ["llama2-chat"]
environment = {{ NAME = "a=b" }}
[component.config]
message = "{{{{ greeting }}}}, {{{{ token }}}}"
[component.build]
command = "make"
workdir = "src"
watch = ["**/*.rs"]
[component.trigger]
route = "/one/..."
executor = {{ type = "wagi", entrypoint = "run", argv = "a ${{ARGS}}" }}

[[component]]
id = "two"
source = "two.wasm"
[component.trigger]
route = "/two"
"""


def refusal(text: str) -> str:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text)
    assert caught.value.exit_code == ExitCode.MANIFEST
    return str(caught.value)


def test_every_field() -> None:
    assert parse_manifest(FULL) == AppManifest(
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
                source=UrlSource("https://example.com/one.wasm", DIGEST),
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
    text = HEAD.replace('spin_manifest_version = "1"', line)
    assert parse_manifest(text + HELLO + ROUTE).manifest_version == 1


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
    text = HEAD + HELLO + ROUTE + (f"executor = {executor}" if executor else "")
    assert parse_manifest(text).triggers == (
        HttpTrigger(id="trigger-hello", component="hello", route="/hello", executor=expected),
    )


def test_redis_trigger() -> None:
    text = HEAD.replace('type = "http", base = "/"', 'type = "redis", address = "redis://r"')
    app = parse_manifest(f"{text}{HELLO}trigger = {{ channel = 'c', executor = {{type='spin'}} }}")
    assert app.triggers == (
        RedisTrigger(
            id="trigger-hello", component="hello", channel="c", address=literal("redis://r")
        ),
    )


def test_unknown_trigger_type_keeps_its_settings() -> None:
    text = HEAD.replace('type = "http", base = "/"', 'type = "timer", speed = 3')
    app = parse_manifest(text + HELLO + "trigger = { interval = 7 }")
    assert app.trigger_settings == {"timer": {"speed": 3}}
    assert app.triggers == (
        OtherTrigger(type="timer", id="trigger-hello", component="hello", settings={"interval": 7}),
    )
    assert app.triggers[0].where == "spin.toml:4:1: trigger"


def test_entries_know_their_place() -> None:
    """What is wrong with an entry may be found only later, when its file is not there."""
    app = parse_manifest(FULL, "app.toml")
    assert app.components[0].where == 'app.toml:14:1: component[0] ("one")'
    assert [entry.where for entry in app.components[0].files] == [
        'app.toml:18:10: component[0] ("one").files[0]',
        'app.toml:18:25: component[0] ("one").files[1]',
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
    component = parse_manifest(f"{HEAD}{HELLO}{lines}\n{ROUTE}").components[0]
    assert (component.allowed_outbound_hosts, component.hosts_field) == (hosts, field)


HEAD_FAULTS = [
    pytest.param(
        'version = "1.0.0"', "versoin = 1",
        "spin.toml:3:1: unknown field `versoin`; did you mean `version`?", id="unknown field",
    ),
    pytest.param(
        'version = "1.0.0"', "", "spin.toml:1:1: required field `version` is missing", id="missing"
    ),
    pytest.param(
        'name = "app"', "name = 3", "spin.toml:2:1: name = 3: must be a string, not an integer",
        id="type",
    ),
    pytest.param('name = "app"', 'name = ""', "2:1: name = \"\": must not be empty", id="no name"),
    pytest.param(
        'name = "app"', 'name = "app"\nauthors = ["a",\n  1979-05-27]',
        'spin.toml:4:3: authors[1] = "1979-05-27": must be a string, not a date or time',
        id="element type",
    ),
    pytest.param(
        'spin_manifest_version = "1"', "", "required field `spin_manifest_version` is missing",
        id="no version",
    ),
    pytest.param(
        'spin_manifest_version = "1"', 'spin_version = "2"',
        'spin.toml:1:1: spin_version = "2": must be "1", or for version 2 `spin_manifest',
        id="other version",
    ),
    pytest.param(
        'spin_manifest_version = "1"', "spin_version = true", 'spin_version = true: must be "1"',
        id="boolean version",
    ),
    pytest.param(
        'spin_manifest_version = "1"', 'spin_version="1"\nspin_manifest_version="1"',
        "spin.toml:1:1: spin_version = \"1\": the version is given already", id="version twice",
    ),
    pytest.param(
        ', base = "/"', "", "spin.toml:4:1: trigger: required field `base` is missing", id="no base"
    ),
    pytest.param(
        'base = "/"', 'base = "x"', 'spin.toml:4:28: trigger.base = "x": must start with "/"',
        id="base without slash",
    ),
    pytest.param('base = "/"', 'base = "/..."', "only as the last part of a route", id="base dots"),
    pytest.param(
        'base = "/"', 'base = "/", bsae = 1', "trigger: unknown field `bsae`; did you mean `base`?",
        id="unknown in trigger",
    ),
    pytest.param(
        'type = "http", base = "/"', 'base = "/"', "trigger: required field `type` is missing",
        id="no trigger type",
    ),
    pytest.param(
        'trigger = { type = "http", base = "/" }', "trigger = 'http'",
        'trigger = "http": must be a table, not a string', id="trigger no table",
    ),
    pytest.param(
        'type = "http", base = "/"', 'type = "redis"', "required field `address` is missing",
        id="no address",
    ),
    pytest.param(
        'version = "1.0.0"', 'version = "1"\nvariables.Bad = { default = "x" }',
        "spin.toml:4:11: variables.Bad: `B` is not a lower-case letter", id="variable name",
    ),
    pytest.param(
        'version = "1.0.0"', 'version = "1"\nvariables.v = { required = true, default = "x" }',
        "variables.v: must have either `required = true` or a `default`", id="both",
    ),
    pytest.param(
        'version = "1.0.0"', 'version = "1"\nvariables.v = { secret = true }',
        "variables.v: must have either `required = true` or a `default`", id="neither",
    ),
    pytest.param(
        'version = "1.0.0"', 'version = "1"\nvariables.v = { required = "yes" }',
        'variables.v.required = "yes": must be a boolean, not a string', id="required no boolean",
    ),
    pytest.param(
        'version = "1.0.0"', 'version = "1"\nvariables.v = { defualt = "x" }',
        "variables.v: unknown field `defualt`; did you mean `default`?", id="unknown in variable",
    ),
    pytest.param(
        'version = "1.0.0"', 'version = "1"\nvariables.v = { default = 99, secret = true }',
        "variables.v.default: must be a string, not an integer", id="secret is not shown",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), HEAD_FAULTS)
def test_fault_in_the_app_is_refused(old: str, new: str, message: str) -> None:
    assert message in refusal(HEAD.replace(old, new) + HELLO + ROUTE)


H = 'component[0] ("hello")'
COMPONENT_FAULTS = [
    pytest.param(
        "sorce = 'x'", f"8:1: {H}: unknown field `sorce`; did you mean `source`?", id="unknown"
    ),
    pytest.param("zzz = 'x'", f"{H}: unknown field `zzz`; known fields: id, ", id="like nothing"),
    pytest.param("'Key Value' = 1", f"{H}: unknown field `Key Value`", id="quoted unknown"),
    pytest.param("description = 1", f"{H}.description = 1: must be a string", id="description"),
    pytest.param("files = 'x'", f"{H}.files = \"x\": must be an array, not a string", id="files"),
    pytest.param(
        "files = ['a', 1]", f"8:15: {H}.files[1] = 1: must be a pattern or {{ source", id="file"
    ),
    pytest.param("files = ['/a']", f"8:10: {H}.files[0] = \"/a\": must be relative", id="glob abs"),
    pytest.param("files = ['a/../b']", "must not contain `..`", id="glob up"),
    pytest.param("files = ['']", "must not be empty", id="glob empty"),
    pytest.param("files = ['a**']", "`**` must be a whole part of the path", id="glob stars"),
    pytest.param("files = ['***']", "wildcards are either `*` or `**`", id="glob three stars"),
    pytest.param("files = ['a[b']", "`[` at character 2 has no `]`", id="glob set"),
    pytest.param(
        "files = [{ source = 'a' }]", f"{H}.files[0]: required field `destination` is missing",
        id="no destination",
    ),
    pytest.param(
        "files = [{ source = 'a', destination = '/a', mode = 1 }]",
        f"8:46: {H}.files[0]: unknown field `mode`", id="unknown in placement",
    ),
    pytest.param(
        "files = [{ source = '/a', destination = '/a' }]", "source must be relative", id="source"
    ),
    pytest.param(
        "files = [{ source = 'a', destination = 'a' }]", "destination must be absolute", id="dest"
    ),
    pytest.param(
        "files = [{ source = 'a', destination = '/a/../b' }]",
        "destination must not contain `..`", id="destination up",
    ),
    pytest.param("exclude_files = ['/a']", f"{H}.exclude_files[0] = \"/a\": must be", id="excl"),
    pytest.param("environment = { A = 1 }", f"8:17: {H}.environment.A = 1: must be ", id="env"),
    pytest.param("environment = { 'A=B' = '' }", f'{H}.environment."A=B": a variable', id="env ="),
    pytest.param('environment = { A = "\\u0000" }', "must not contain a NUL", id="env nul"),
    pytest.param("key_value_stores = ['a-b']", f"{H}.key_value_stores[0] = \"a-b\": ", id="kv"),
    pytest.param("sqlite_databases = ['']", "must not be empty", id="sqlite"),
    pytest.param(
        "allowed_http_hosts = ['*']", f"{H}.allowed_http_hosts[0] = \"*\": did you mean", id="all"
    ),
    pytest.param("allowed_http_hosts = ['h/p']", "without a path", id="http host"),
    pytest.param(
        "allowed_outbound_hosts = ['redis://r', 'r:1']",
        "8:40: {H}.allowed_outbound_hosts[1] = \"r:1\": must be scheme://host[:port]; did you mean"
        .replace("{H}", H),
        id="host",
    ),
    pytest.param("ai_models = 'x'", "ai_models = \"x\": must be an array of strings", id="models"),
    pytest.param("config = { A = '' }", f"{H}.config.A: `A` is not a lower-case", id="config key"),
    pytest.param("config = { a = '{{ b' }", "has no `}}`", id="template"),
    pytest.param(
        "config = { a = '{{ b }}' }", "variable `b` is not declared; known variables: none",
        id="variable",
    ),
    pytest.param("build = { }", f"8:1: {H}.build: required field `command` is missing", id="build"),
    pytest.param("build = { command = '', x = 1 }", f"{H}.build: unknown field `x`", id="in build"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), COMPONENT_FAULTS)
def test_fault_in_a_component_is_refused(line: str, message: str) -> None:
    assert message in refusal(f"{HEAD}{HELLO}{line}\n{ROUTE}")


SOURCE_FAULTS = [
    pytest.param("3", "must be a path or { url, digest }, not an integer", id="type"),
    pytest.param("''", "must be the path of a .wasm file", id="empty"),
    pytest.param("{ url = 'https://x' }", "required field `digest` is missing", id="no digest"),
    pytest.param(f"{{ digest = 'sha256:{DIGEST}' }}", "field `url` is missing", id="no url"),
    pytest.param(f"{{ url = 'http://x', digest = 'sha256:{DIGEST}' }}", "https://", id="http"),
    pytest.param(f"{{ url = 'https://[', digest = 'sha256:{DIGEST}' }}", "https://", id="bad url"),
    pytest.param("{ url = 'https://x', digest = 'sha256:12' }", "64 hexadecimal", id="short"),
    pytest.param(f"{{ url = 'https://x', digest = '{DIGEST}' }}", "`sha256:` and", id="no method"),
    pytest.param(
        f"{{ url = 'https://x', digest = 'sha256:{DIGEST}', dgst = '' }}", "`dgst`", id="unknown"
    ),
]


@pytest.mark.parametrize(("source", "message"), SOURCE_FAULTS)
def test_bad_source_is_refused(source: str, message: str) -> None:
    text = HELLO.replace('"hello.wasm"', source)
    found = refusal(HEAD + text + ROUTE)
    assert found.startswith(f"spin.toml:7:{found.split(':')[2]}: {H}.source")
    assert message in found


TRIGGER_FAULTS = [
    pytest.param("route = '/a?b'", "must be a path only, without `?`", id="query"),
    pytest.param("route = '/a#b'", "must be a path only, without `#`", id="fragment"),
    pytest.param("route = '/a b'", "must be percent-encoded", id="space"),
    pytest.param("route = '/é'", "must be percent-encoded", id="not ascii"),
    pytest.param("route = '/a/.../b'", '"..." is a wildcard only as the last part', id="dots"),
    pytest.param("route = 3", "{H}.trigger.route = 3: must be a path or { private =", id="type"),
    pytest.param(
        "rout = '/a'", "{H}.trigger: unknown field `rout`; did you mean `route`?", id="unknown"
    ),
    pytest.param("", "8:1: {H}.trigger: required field `route` is missing", id="missing"),
    pytest.param(
        "route = '/'\nexecutor = 'wagi'", '{H}.trigger.executor = "wagi": must be a table', id="ex"
    ),
    pytest.param(
        "route = '/'\nexecutor = {}", "{H}.trigger.executor: required field `type` is", id="no type"
    ),
    pytest.param(
        "route = '/'\nexecutor = { type = 'wagy' }",
        '10:14: {H}.trigger.executor.type = "wagy": unknown executor; did you mean `wagi`?',
        id="unknown executor",
    ),
    pytest.param(
        "route = '/'\nexecutor = { type = 'spin', argv = '' }",
        "{H}.trigger.executor: unknown field `argv`", id="argv for spin",
    ),
    pytest.param(
        "route = '/'\nexecutor = { type = 'wagi', entrypoint = '' }", "must not be empty", id="fn"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "message"), TRIGGER_FAULTS)
def test_bad_component_trigger_is_refused(lines: str, message: str) -> None:
    found = refusal(f"{HEAD}{HELLO}[component.trigger]\n{lines}\n")
    assert message.replace("{H}", H) in found


@pytest.mark.parametrize("route", ["/", "/...", "/a/b/", "/a/.../", "/a...", "/:x", "/%20", "/{a}"])
def test_good_route(route: str) -> None:
    (trigger,) = parse_manifest(HEAD + HELLO + ROUTE.replace("/hello", route)).triggers
    assert trigger == HttpTrigger(id="trigger-hello", component="hello", route=route)


def test_duplicate_id_names_both() -> None:
    assert refusal(HEAD + HELLO + ROUTE + HELLO + ROUTE) == (
        'spin.toml:11:1: component[1] ("hello").id = "hello": component[0] has this id already'
    )


def test_what_is_written_as_in_version_2() -> None:
    text = HEAD + "[application]\nname = 'x'\n" + HELLO + "variables = { a = '' }\n" + ROUTE
    assert refusal(text).split("\n") == [
        "spin.toml:5:1: application: is of version 2; for that, write `spin_manifest_version = 2`",
        f"spin.toml:10:1: {H}.variables: is called `config` in version 1",
    ]


def test_no_components() -> None:
    assert refusal(HEAD) == "spin.toml:1:1: required field `component` is missing"
    assert "must be an array of tables [[component]], not a table" in refusal(
        HEAD + HELLO.replace("[[component]]", "[component]")
    )


def test_undeclared_variable_suggests_the_nearest() -> None:
    text = f"{HEAD}{HELLO}config.a = '{{{{ tokn }}}}'\n{ROUTE}[variables.token]\nrequired = true"
    assert refusal(text) == (
        f'spin.toml:8:8: {H}.config.a = "{{{{ tokn }}}}": variable `tokn` is not declared; '
        "did you mean `token`?"
    )


def test_several_faults_stand_in_the_order_of_the_text() -> None:
    text = HEAD.replace('"app"', "1") + HELLO + "x = 1\nfiles = 2\n" + ROUTE
    assert [line.split(": ")[0] for line in refusal(text).split("\n")] == [
        "spin.toml:2:1",
        "spin.toml:8:1",
        "spin.toml:9:1",
    ]


def test_many_faults_are_counted() -> None:
    lines = refusal("".join(f"x{i} = 1\n" for i in range(20)) + HEAD + HELLO + ROUTE).split("\n")
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
    lines = FULL.split("\n")
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
