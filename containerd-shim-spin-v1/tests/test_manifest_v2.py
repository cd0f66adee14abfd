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

DIGEST = "0123456789abcdef" * 4

FULL = f"""\
spin_manifest_version = 2

[application]
name = "app"
version = "1.0.0"
description = "what it does"
authors = ["A <a@example.com>"]
targets = ["spin-up:3.2", {{ url = "https://example.com/t.toml" }}, {{ path = "t.toml" }}]
[application.trigger.http]
base = "/base"
[application.trigger.redis]
address = "redis://{{{{ host }}}}"
[application.trigger.timer]
speed = 3
[application.tool.any]
whatever = [1, {{}}]

[variables]
token = {{ required = true, secret = true, description = "what for" }}
host = {{ default = "h" }}

[[trigger.http]]
id = "first"
route = "/one/:id/..."
component = "one"
executor = {{ type = "wagi", argv = "a ${{ARGS}}" }}

[[trigger.http]]
route = {{ private = true }}
component = "one"

[[trigger.http]]
route = "/inline"
component = {{ source = "inline.wasm", allowed_http_hosts = ["h:81"] }}

[[trigger.http]]
route = "/static"
static_response = {{ status_code = 404, headers = {{ a-b = "c" }}, body = "no" }}

[[trigger.redis]]
channel = "c"
component = "one"

[[trigger.redis]]
channel = "d"
address = "redis://other"
component = "one"

[[trigger.command]]
component = "two-three"

[[trigger.timer]]
component = "two-three"
interval = 7

[component.one]
source = {{ url = "https://example.com/one.wasm", digest = "sha256:{DIGEST}" }}
description = "first"
files = ["static/**/*", {{ source = "assets", destination = "/assets" }}]
exclude_files = ["static/*.key"]
allowed_outbound_hosts = ["redis://{{{{ host }}}}:*", "https://*.example.com"]
key_value_stores = ["default", "kebab-case", "snake_case"]
sqlite_databases = ["default"]
ai_models = ["llama2-chat"]
environment = {{ NAME = "a=b" }}
targets = ["x"]
dependencies_inherit_configuration = false
[component.one.variables]
message = "{{{{ host }}}}, {{{{ token }}}}"
[component.one.build]
command = ["make", "make install"]
workdir = "src"
watch = ["**/*.rs"]
[component.one.tool.any]
x = 1
[component.one.profile.debug]
source = "debug.wasm"
environment = {{ DEBUG = "1" }}
build = {{ command = "make debug" }}
[component.one.dependencies]

[component.two-three]
source = {{ registry = "example.com", package = "acme:two", version = "1.0.0" }}
[component.two-three.build]
command = "make"
"""

HEAD = "spin_manifest_version = 2\n[application]\nname = 'app'\n"  # 3 lines
TRIGGER = "[[trigger.http]]\nroute = '/'\ncomponent = 'hello'\n"  # lines 4 to 6
HELLO = "[component.hello]\nsource = 'hello.wasm'\n"  # lines 7 and 8


def refusal(text: str) -> str:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text)
    return str(caught.value)


def test_every_field() -> None:
    assert parse_manifest(FULL) == AppManifest(
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
                source=UrlSource("https://example.com/one.wasm", DIGEST),
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
    app = parse_manifest(HEAD + TRIGGER + HELLO)
    assert (app.version, app.http_base) == (None, "/")
    assert app.component("hello").where == "spin.toml:7:1: component.hello"
    assert app.component("hello").hosts_field == "allowed_outbound_hosts"
    assert app.triggers[0].where == 'spin.toml:4:1: trigger.http[0] ("hello-http-trigger")'
    with pytest.raises(KeyError):
        app.component("other")


def test_several_triggers_of_several_types_for_one_component() -> None:
    text = HEAD + TRIGGER + TRIGGER.replace("'/'", "'/b'") + HELLO
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
    app = parse_manifest(HEAD + TRIGGER + given_id + inline + HELLO + taken)
    assert [trigger.id for trigger in app.triggers] == [
        "http-trigger1", "hello-http-trigger", "no label",
    ]  # fmt: skip
    assert [component.id for component in app.components] == [
        "hello", "inline-component1", "inline-component2",
    ]  # fmt: skip


HEAD_FAULTS = [
    pytest.param("[application]", "", "required field `application` is missing", id="no app"),
    pytest.param("name = 'app'", "", "2:1: application: required field `name`", id="no name"),
    pytest.param("name = 'app'", "name = ''", "application.name = \"\": must not", id="empty"),
    pytest.param(
        "name = 'app'", "name = 'app'\nnmae = 1",
        "4:1: application: unknown field `nmae`; did you mean `name`?", id="unknown in app",
    ),
    pytest.param(
        "spin_manifest_version = 2", "spin_manifest_version = 2\nvarialbes = {}",
        "spin.toml:2:1: unknown field `varialbes`; did you mean `variables`?", id="unknown",
    ),
    pytest.param(
        "name = 'app'", "name = 'app'\ntrigger.http.bsae = '/'",
        "application.trigger.http: unknown field `bsae`; did you mean `base`?", id="unknown base",
    ),
    pytest.param(
        "name = 'app'", "name = 'app'\ntrigger.http.base = 'x'", 'did you mean "/x"?', id="base"
    ),
    pytest.param(
        "name = 'app'", "name = 'app'\ntrigger.redis = {}",
        "application.trigger.redis: required field `address` is missing", id="no address",
    ),
    pytest.param(
        "name = 'app'", "name = 'app'\ntrigger.redis.address = '{{ x }}'",
        "variable `x` is not declared", id="address with a variable",
    ),
    pytest.param(
        "name = 'app'", "name = 'app'\ntrigger.http = 3",
        "application.trigger.http = 3: must be a table, not an integer", id="settings",
    ),
    pytest.param("name = 'app'", "name = 'app'\ntargets = 'x'", "must be an array", id="targets"),
    pytest.param(
        "name = 'app'", "name = 'app'\ntargets = [1, {}, { url = '', path = '' }, { x = 1 }]",
        "targets[0] = 1: must be a name, { url } or { path }, not an integer", id="target",
    ),
    pytest.param("name = 'app'", "name = 'app'\ntool.x = 1", "must be a table", id="tool"),
    pytest.param("name = 'app'", "name = 'app'\nversion = 1", "must be a string", id="version"),
    pytest.param("= 2", "= '2'", 'for version 2 `spin_manifest_version = 2`', id="version text"),
    pytest.param("= 2", "= 3", 'for version 2 `spin_manifest_version = 2`', id="version 3"),
    pytest.param("= 2", "= 2.0", 'for version 2 `spin_manifest_version = 2`', id="version float"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), HEAD_FAULTS)
def test_fault_in_the_app_is_refused(old: str, new: str, message: str) -> None:
    assert message in refusal(HEAD.replace(old, new) + TRIGGER + HELLO)


T = 'trigger.http[0] ("hello-http-trigger")'
TRIGGER_FAULTS = [
    pytest.param("route = '/'", "", f"4:1: {T}: required field `route` is missing", id="no route"),
    pytest.param("route = '/'", "route = 3", f"5:1: {T}.route = 3: must be a path or", id="type"),
    pytest.param("'/'", "{ private = false }", "must be a path or { private = true }", id="public"),
    pytest.param("'/'", "{ privat = true }", f"{T}.route: unknown field `privat`", id="private"),
    pytest.param("'/'", "'/a/.../b'", '"..." is a wildcard only as the last part', id="dots"),
    pytest.param("'/'", "'/*/b'", '"*" is a wildcard only as the last part', id="asterisk"),
    pytest.param("'/'", "'/*rest'", "did you mean `*` for `*rest`?", id="named wildcard"),
    pytest.param("'/'", "'/:'", "must be named, as in `/:id`", id="no name"),
    pytest.param("'/'", "'/a?b'", "must be a path only, without `?`", id="query"),
    pytest.param(
        "'hello'", "'helo'",
        '6:1: trigger.http[0] ("helo-http-trigger").component = "helo": there is no such component;'
        " did you mean `hello`?", id="component",
    ),
    pytest.param("'hello'", "3", "must be an id or a table, not an integer", id="component type"),
    pytest.param(
        "component = 'hello'", "", "needs either a `component` or a `static_response`, has neither",
        id="no component",
    ),
    pytest.param(
        "component = 'hello'", "component = 'hello'\nstatic_response = {}", "has both", id="both"
    ),
    pytest.param(
        "component = 'hello'", "static_response = { status_code = 99 }",
        "static_response.status_code = 99: must be from 200 to 599", id="status",
    ),
    pytest.param(
        "component = 'hello'", "static_response = { headers = { 'a b' = 'c', d = \"\\n\" } }",
        '.static_response.headers."a b": is no name of a header', id="header",
    ),
    pytest.param(
        "component = 'hello'", "component = 'hello'\nrout = 1",
        f"7:1: {T}: unknown field `rout`; did you mean `route`?", id="unknown",
    ),
    pytest.param(
        "component = 'hello'", "component = { sorce = 'x' }",
        "component: unknown field `sorce`; did you mean `source`?", id="inline component",
    ),
    pytest.param(
        "component = 'hello'",
        "component = 'hello'\nexecutor = { type = 'wagi', entrypoint = 'f' }",
        "version 2 calls `_start` only", id="entrypoint",
    ),
    pytest.param(
        "component = 'hello'", "component = 'hello'\nexecutor = { type = 'wasip3-unstable' }",
        "is for WebAssembly components", id="wasip3",
    ),
    pytest.param(
        "component = 'hello'", "component = 'hello'\ncomponents = { a = 'hello' }",
        f"{T}.components: composes WebAssembly components", id="components",
    ),
    pytest.param(
        "component = 'hello'", "component = 'hello'\ndependencies = { a = [{ path = 'x' }] }",
        f"{T}.dependencies: composes WebAssembly components", id="dependencies",
    ),
    pytest.param(
        "[[trigger.http]]", "[trigger.http]",
        "must be an array of tables [[trigger.http]], not a table", id="one pair of brackets",
    ),
    pytest.param(
        "[[trigger.http]]", "[[trigger.http]]\nid = 'x'\ncomponent = 'hello'\nroute = '/x'\n"
        "[[trigger.http]]\nid = 'x'",
        'id = "x": trigger.http[0] has this id already', id="id twice",
    ),
    pytest.param(
        "[[trigger.http]]\nroute = '/'", "[[trigger.redis]]", "required field `channel` is missing",
        id="redis channel",
    ),
    pytest.param(
        "[[trigger.http]]\nroute = '/'", "[[trigger.redis]]\nchannel = 'c'",
        "needs an `address`, here or in [application.trigger.redis]", id="redis address",
    ),
    pytest.param(
        "[[trigger.http]]\nroute = '/'", "[[trigger.redis]]\nchannel = 'c'\naddress = '{{ x }}'",
        "variable `x` is not declared", id="redis address with a variable",
    ),
    pytest.param(
        "[[trigger.http]]", "[[trigger.command]]", "unknown field `route`", id="command",
    ),
    pytest.param(
        "[[trigger.http]]\nroute = '/'\ncomponent = 'hello'", "[[trigger.command]]",
        "required field `component` is missing", id="command without component",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), TRIGGER_FAULTS)
def test_bad_trigger_is_refused(old: str, new: str, message: str) -> None:
    assert message in refusal(HEAD + TRIGGER.replace(old, new) + HELLO)


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
    assert refusal(HEAD + HELLO) == "spin.toml:1:1: required field `trigger` is missing"


C = "component.hello"
COMPONENT_FAULTS = [
    pytest.param("sorce = 1", f"9:1: {C}: unknown field `sorce`; did you mean `source`?", id="un"),
    pytest.param("config = {}", f"9:1: {C}.config: is called `variables`", id="version 1"),
    pytest.param("trigger = {}", f"{C}.trigger: is a table of its own in version 2", id="its trg"),
    pytest.param("id = 'hello'", f"{C}.id: is in the table's name", id="its id"),
    pytest.param("variables = { A = '' }", f"{C}.variables.A: `A` is not a lower", id="name"),
    pytest.param("variables = { a = '{{ b }}' }", "variable `b` is not declared", id="variable"),
    pytest.param(
        "allowed_outbound_hosts = ['example.com']",
        f'9:27: {C}.allowed_outbound_hosts[0] = "example.com": must be scheme://host[:port]; '
        "did you mean `https://example.com`?", id="host",
    ),
    pytest.param(
        "allowed_outbound_hosts = ['insecure:allow-all']", "all networks are `*://*:*`", id="all"
    ),
    pytest.param("allowed_outbound_hosts = ['http://{{ x']", "has no `}}`", id="template"),
    pytest.param("allowed_outbound_hosts = ['http://{{ x }}']", "`x` is not declared", id="var"),
    pytest.param("allowed_http_hosts = ['h/p']", "without a path", id="http host"),
    pytest.param("key_value_stores = ['a-b_c']", "by single hyphens or by single", id="store"),
    pytest.param("sqlite_databases = ['A b']", "by single hyphens or by single", id="database"),
    pytest.param("build = {}", f"{C}.build: required field `command` is missing", id="build"),
    pytest.param("build = { command = 1 }", "must be a string or an array of strings", id="cmd"),
    pytest.param("build = { command = ['a', 1] }", "command[1] = 1: must be a string", id="cmds"),
    pytest.param("tool = { a = 1 }", f"{C}.tool.a = 1: must be a table", id="tool"),
    pytest.param("profile = { a = { x = 1 } }", f"{C}.profile.a: unknown field `x`", id="profile"),
    pytest.param(
        "dependencies_inherit_configuration = 'x'", "must be a boolean, not a string", id="inherit"
    ),
    pytest.param(
        "dependencies = { 'a:b/c' = '1.0' }",
        f"9:1: {C}.dependencies: composes WebAssembly components, which are not supported yet",
        id="dependencies",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), COMPONENT_FAULTS)
def test_fault_in_a_component_is_refused(line: str, message: str) -> None:
    assert message in refusal(f"{HEAD}{TRIGGER}{HELLO}{line}\n")


@pytest.mark.parametrize(
    ("id_", "message"),
    [
        ("two_words", "words are joined by `-`, not `_`; did you mean `two-words`?"),
        ("Mixed", "each all lower or all upper case"),
        ("1a", "start with a letter"),
        ("'a b'", "must be words"),
        ("a-", "must be words"),
    ],
)
def test_bad_component_id(id_: str, message: str) -> None:
    text = f"{HEAD}{TRIGGER}{HELLO}[component.{id_}]\nsource = 'x'\n"
    assert message in refusal(text)


SOURCE_FAULTS = [
    ("3", "must be a path or { url, digest } or { registry, package, version }, not an integer"),
    ("''", "must be the path of a .wasm file"),
    ("{ package = 'acme:x' }", "required field `version` is missing"),
    ("{ package = 'acme', version = '1' }", "must be namespace:name"),
    ("{ package = 'a:b', version = '1', url = '' }", "unknown field `url`"),
    ("{ url = 'https://x' }", "required field `digest` is missing"),
]


@pytest.mark.parametrize(("source", "message"), SOURCE_FAULTS)
def test_bad_source_is_refused(source: str, message: str) -> None:
    found = refusal(HEAD + TRIGGER + HELLO.replace("'hello.wasm'", source))
    assert message in found
    assert found.startswith(f"spin.toml:8:{found.split(':')[2]}: component.hello.source")


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
    text = f"{HEAD}{TRIGGER}{HELLO}allowed_outbound_hosts = ['{host}']\n"
    text += f"[variables]\nv = {{ {variable} }}\n"
    if message is None:
        (entry,) = parse_manifest(text).components[0].allowed_outbound_hosts
        assert entry == parse_template(host)
    else:
        assert message in (found := refusal(text))
        assert "s3cret" not in found


def test_several_faults_stand_in_the_order_of_the_text() -> None:
    text = HEAD.replace("'app'", "1") + TRIGGER.replace("'/'", "2") + HELLO + "files = 3\n"
    assert [line.split(": ")[0] for line in refusal(text).split("\n")] == [
        "spin.toml:3:1",
        "spin.toml:5:1",
        "spin.toml:9:1",
    ]


VALUES: list[Any] = ["1", "true", "''", "'/'", "[]", "{}", "[[1]]", "[{}]", "{a={}}", "{a=[{}]}"]


@given(st.data())
def test_any_mutilation_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever value any field has, the answer is a manifest or a ManifestError."""
    lines = FULL.split("\n")
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
    lines = FULL.split("\n")
    del lines[data.draw(st.integers(1, len(lines) - 1))]
    found = "spin.toml:"
    try:
        parse_manifest("\n".join(lines))
    except ManifestError as exc:
        found = str(exc)
    assert found.startswith("spin.toml:")
