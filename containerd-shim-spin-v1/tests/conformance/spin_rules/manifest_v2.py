"""Manifests of version 2.

Source: Spin 3.6 crates/manifest/src/{schema/v2,schema/common,normalize}.rs.
"""

from __future__ import annotations

from typing import Final

from spin_rules.manifests import HEX, Fault, changes, fills

FULL_V2: Final = f"""\
spin_manifest_version = 2

[application]
name = "app"  # required
version = "1.0.0"  # optional
description = "what it does"  # optional
authors = ["A <a@example.com>"]  # optional
targets = ["spin-up:3.2", {{ url = "https://h/t" }}, {{ path = "t.toml" }}]  # optional
[application.trigger.http]
base = "/base"  # optional
[application.trigger.redis]
address = "redis://{{{{ host }}}}"  # required
[application.trigger.timer]
speed = 3
[application.tool.any]
whatever = [1, {{}}]

[variables.token]
required = true  # either
secret = true  # optional
description = "what for"  # optional
[variables.host]
default = "h"  # either

[[trigger.http]]
id = "first"  # optional
route = "/one/:id/..."  # required
component = "one"  # either
[trigger.http.executor]
type = "wagi"  # required
argv = "a ${{ARGS}}"  # optional
entrypoint = "_start"  # optional

[[trigger.http]]
route = {{ private = true }}  # required
component = "one"  # either

[[trigger.http]]
route = "/inline"  # required
[trigger.http.component]
source = "inline.wasm"  # required
allowed_http_hosts = ["h:81"]  # optional

[[trigger.http]]
route = "/static"  # required
[trigger.http.static_response]
status_code = 404  # optional
headers = {{ a-b = "c" }}  # optional
body = "no"  # optional

[[trigger.redis]]
channel = "c"  # required
component = "one"  # required

[[trigger.redis]]
channel = "d"  # required
address = "redis://other"  # optional
component = "one"  # required

[[trigger.command]]
component = "two-three"  # required

[[trigger.timer]]
component = "two-three"  # optional
interval = 7

[component.one]
source = {{ url = "https://example.com/one.wasm", digest = "sha256:{HEX}" }}  # required
description = "first"  # optional
files = ["static/**/*", {{ source = "assets", destination = "/assets" }}]  # optional
exclude_files = ["static/*.key"]  # optional
allowed_outbound_hosts = ["redis://{{{{ host }}}}:*", "https://*.example.com"]  # optional
key_value_stores = ["default", "kebab-case", "snake_case"]  # optional
sqlite_databases = ["default"]  # optional
ai_models = ["llama2-chat"]  # optional
environment.NAME = "a=b"  # optional
targets = ["x"]  # optional
dependencies_inherit_configuration = false  # optional
[component.one.variables]
message = "{{{{ host }}}}, {{{{ token }}}}"  # optional
[component.one.build]
command = ["make", "make install"]  # required
workdir = "src"  # optional
watch = ["**/*.rs"]  # optional
[component.one.tool.any]
x = 1
[component.one.profile.debug]
source = "debug.wasm"  # optional
environment.DEBUG = "1"  # optional
build.command = "make debug"  # optional
[component.one.dependencies]

[component.two-three]
[component.two-three.source]
registry = "example.com"  # optional
package = "acme:two"  # required
version = "1.0.0"  # required
[component.two-three.build]
command = "make"  # required
"""

HEAD_V2: Final = "spin_manifest_version = 2\n[application]\nname = 'app'\n"  # 3 lines
TRIGGER_V2: Final = "[[trigger.http]]\nroute = '/'\ncomponent = 'hello'\n"  # lines 4 to 6
HELLO_V2: Final = "[component.hello]\nsource = 'hello.wasm'\n"  # lines 7 and 8
LEAST_V2: Final = HEAD_V2 + TRIGGER_V2 + HELLO_V2

# {H}: how the trigger or the component is called.

_APP: Final = [
    ("no app", "[application]", "", "required field `application` is missing"),
    ("no name", "name = 'app'", "", "2:1: application: required field `name`"),
    ("empty", "name = 'app'", "name = ''", 'application.name = "": must not'),
    ("unknown in app", "name = 'app'", "name = 'app'\nnmae = 1",
     "4:1: application: unknown field `nmae`; did you mean `name`?"),
    ("unknown", "spin_manifest_version = 2", "spin_manifest_version = 2\nvarialbes = {}",
     "spin.toml:2:1: unknown field `varialbes`; did you mean `variables`?"),
    ("unknown base", "name = 'app'", "name = 'app'\ntrigger.http.bsae = '/'",
     "application.trigger.http: unknown field `bsae`; did you mean `base`?"),
    ("base", "name = 'app'", "name = 'app'\ntrigger.http.base = 'x'", 'did you mean "/x"?'),
    ("no address", "name = 'app'", "name = 'app'\ntrigger.redis = {}",
     "application.trigger.redis: required field `address` is missing"),
    ("address with a variable", "name = 'app'",
     "name = 'app'\ntrigger.redis.address = '{{ x }}'", "variable `x` is not declared"),
    ("settings", "name = 'app'", "name = 'app'\ntrigger.http = 3",
     "application.trigger.http = 3: must be a table, not an integer"),
    ("targets", "name = 'app'", "name = 'app'\ntargets = 'x'", "must be an array"),
    ("target", "name = 'app'",
     "name = 'app'\ntargets = [1, {}, { url = '', path = '' }, { x = 1 }]",
     "targets[0] = 1: must be a name, { url } or { path }, not an integer"),
    ("tool", "name = 'app'", "name = 'app'\ntool.x = 1", "must be a table"),
    ("version", "name = 'app'", "name = 'app'\nversion = 1", "must be a string"),
    ("version text", "= 2", "= '2'", "for version 2 `spin_manifest_version = 2`"),
    ("version 3", "= 2", "= 3", "for version 2 `spin_manifest_version = 2`"),
    ("version float", "= 2", "= 2.0", "for version 2 `spin_manifest_version = 2`"),
]  # fmt: skip

_TRIGGER: Final = [
    ("no route", "route = '/'", "", "4:1: {H}: required field `route` is missing"),
    ("type", "route = '/'", "route = 3", "5:1: {H}.route = 3: must be a path or"),
    ("public", "'/'", "{ private = false }", "must be a path or { private = true }"),
    ("private", "'/'", "{ privat = true }", "{H}.route: unknown field `privat`"),
    ("dots", "'/'", "'/a/.../b'", '"..." is a wildcard only as the last part'),
    ("asterisk", "'/'", "'/*/b'", '"*" is a wildcard only as the last part'),
    ("named wildcard", "'/'", "'/*rest'", "did you mean `*` for `*rest`?"),
    ("no name", "'/'", "'/:'", "must be named, as in `/:id`"),
    ("query", "'/'", "'/a?b'", "must be a path only, without `?`"),
    ("component", "'hello'", "'helo'",
     '6:1: trigger.http[0] ("helo-http-trigger").component = "helo": there is no such '
     'component; did you mean `hello`?'),
    ("component type", "'hello'", "3", "must be an id or a table, not an integer"),
    ("no component", "component = 'hello'", "",
     "needs either a `component` or a `static_response`, has neither"),
    ("both", "component = 'hello'", "component = 'hello'\nstatic_response = {}", "has both"),
    ("status", "component = 'hello'", "static_response = { status_code = 99 }",
     "static_response.status_code = 99: must be from 200 to 599"),
    ("header", "component = 'hello'",
     "static_response = { headers = { 'a b' = 'c', d = \"\\n\" } }",
     '.static_response.headers."a b": is no name of a header'),
    ("unknown", "component = 'hello'", "component = 'hello'\nrout = 1",
     "7:1: {H}: unknown field `rout`; did you mean `route`?"),
    ("inline component", "component = 'hello'", "component = { sorce = 'x' }",
     "component: unknown field `sorce`; did you mean `source`?"),
    ("entrypoint", "component = 'hello'",
     "component = 'hello'\nexecutor = { type = 'wagi', entrypoint = 'f' }",
     "version 2 calls `_start` only"),
    ("wasip3", "component = 'hello'",
     "component = 'hello'\nexecutor = { type = 'wasip3-unstable' }",
     "is for WebAssembly components"),
    ("components", "component = 'hello'", "component = 'hello'\ncomponents = { a = 'hello' }",
     "{H}.components: composes WebAssembly components"),
    ("dependencies", "component = 'hello'",
     "component = 'hello'\ndependencies = { a = [{ path = 'x' }] }",
     "{H}.dependencies: composes WebAssembly components"),
    ("one pair of brackets", "[[trigger.http]]", "[trigger.http]",
     "must be an array of tables [[trigger.http]], not a table"),
    ("id twice", "[[trigger.http]]",
     "[[trigger.http]]\nid = 'x'\ncomponent = 'hello'\nroute = '/x'\n[[trigger.http]]\nid = 'x'",
     'id = "x": trigger.http[0] has this id already'),
    ("redis channel", "[[trigger.http]]\nroute = '/'", "[[trigger.redis]]",
     "required field `channel` is missing"),
    ("redis address", "[[trigger.http]]\nroute = '/'", "[[trigger.redis]]\nchannel = 'c'",
     "needs an `address`, here or in [application.trigger.redis]"),
    ("redis address with a variable", "[[trigger.http]]\nroute = '/'",
     "[[trigger.redis]]\nchannel = 'c'\naddress = '{{ x }}'", "variable `x` is not declared"),
    ("command", "[[trigger.http]]", "[[trigger.command]]", "unknown field `route`"),
    ("command without component", "[[trigger.http]]\nroute = '/'\ncomponent = 'hello'",
     "[[trigger.command]]", "required field `component` is missing"),
]  # fmt: skip

_COMPONENT: Final = [
    ("unknown field", "sorce = 1", "9:1: {H}: unknown field `sorce`; did you mean `source`?"),
    ("version 1", "config = {}", "9:1: {H}.config: is called `variables`"),
    ("trigger", "trigger = {}", "{H}.trigger: is a table of its own in version 2"),
    ("id", "id = 'hello'", "{H}.id: is in the table's name"),
    ("name", "variables = { A = '' }", "{H}.variables.A: `A` is not a lower"),
    ("variable", "variables = { a = '{{ b }}' }", "variable `b` is not declared"),
    ("host", "allowed_outbound_hosts = ['example.com']",
     '9:27: {H}.allowed_outbound_hosts[0] = "example.com": must be scheme://host[:port]; '
     'did you mean `https://example.com`?'),
    ("all hosts", "allowed_outbound_hosts = ['insecure:allow-all']", "all networks are `*://*:*`"),
    ("template", "allowed_outbound_hosts = ['http://{{ x']", "has no `}}`"),
    ("host with a variable", "allowed_outbound_hosts = ['http://{{ x }}']", "`x` is not declared"),
    ("http host", "allowed_http_hosts = ['h/p']", "without a path"),
    ("store", "key_value_stores = ['a-b_c']", "by single hyphens or by single"),
    ("database", "sqlite_databases = ['A b']", "by single hyphens or by single"),
    ("build", "build = {}", "{H}.build: required field `command` is missing"),
    ("build command", "build = { command = 1 }", "must be a string or an array of strings"),
    ("build commands", "build = { command = ['a', 1] }", "command[1] = 1: must be a string"),
    ("tool", "tool = { a = 1 }", "{H}.tool.a = 1: must be a table"),
    ("profile", "profile = { a = { x = 1 } }", "{H}.profile.a: unknown field `x`"),
    ("inherit", "dependencies_inherit_configuration = 'x'", "must be a boolean, not a string"),
    ("dependencies", "dependencies = { 'a:b/c' = '1.0' }",
     "9:1: {H}.dependencies: composes WebAssembly components, which are not supported yet"),
]  # fmt: skip

_SOURCE: Final = [
    ("type", "3",
     "must be a path or { url, digest } or { registry, package, version }, not an integer"),
    ("empty", "''", "must be the path of a .wasm file"),
    ("package without version", "{ package = 'acme:x' }", "required field `version` is missing"),
    ("package without namespace", "{ package = 'acme', version = '1' }", "must be namespace:name"),
    ("two forms", "{ package = 'a:b', version = '1', url = '' }", "unknown field `url`"),
    ("no digest", "{ url = 'https://x' }", "required field `digest` is missing"),
]  # fmt: skip

_IDS: Final = [
    ("words joined by _", "two_words",
     "words are joined by `-`, not `_`; did you mean `two-words`?"),
    ("letters of both cases", "Mixed", "each all lower or all upper case"),
    ("a digit first", "1a", "start with a letter"),
    ("a space", "'a b'", "must be words"),
    ("a hyphen last", "a-", "must be words"),
]  # fmt: skip

_HTTP: Final = 'trigger.http[0] ("hello-http-trigger")'
_HELLO: Final = "component.hello"


def _faults() -> list[Fault]:
    head, trigger, hello = HEAD_V2, TRIGGER_V2, HELLO_V2
    found = changes(LEAST_V2, _APP, ("unknown in app",))
    for rule, old, new, message in _TRIGGER:
        text = head + trigger.replace(old, new) + hello
        found.append(Fault(rule, text, message.replace("{H}", _HTTP), rule == "component"))
    for rows, form, sample in (
        (_COMPONENT, f"{head}{trigger}{hello}{{}}\n", ("host", "dependencies")),
        (_SOURCE, head + trigger + hello.replace("'hello.wasm'", "{}"), ()),
        (_IDS, f"{head}{trigger}{hello}[component.{{}}]\nsource = 'x'\n", ("a hyphen last",)),
    ):
        found += fills(form, rows, _HELLO, sample)
    return found


FAULTS_V2: Final = _faults()

# Manifests that are right, of apps that are not served.

_TYPES: Final = "the types of triggers that are served are http, redis and command"
_IN_IMAGE: Final = "an image holds its .wasm files itself"
_NOT_SERVED: Final = [
    ("sqs trigger", "[[trigger.http]]\nroute = '/'", "[[trigger.sqs]]\nqueue_url = 'https://q'",
     f"'sqs': {_TYPES}"),
    ("mqtt trigger", "[[trigger.http]]\nroute = '/'", "[[trigger.mqtt]]\ntopic = 't'\nqos = '1'",
     f"'mqtt': {_TYPES}"),
    ("a plugin's trigger", "[[trigger.http]]\nroute = '/'", "[[trigger.timer]]",
     f'4:1: trigger.timer[0] ("hello-timer-trigger") = \'timer\': {_TYPES}'),
    ("a package", "'hello.wasm'", "{ package = 'a:b', version = '1' }",
     f"source is a package of a registry: {_IN_IMAGE}"),
    ("a URL", "'hello.wasm'", f"{{ url = 'https://x/', digest = 'sha256:{HEX}' }}",
     f"7:1: component.hello: source is a URL: {_IN_IMAGE}"),
    ("no trigger", "[[trigger.http]]\nroute = '/'\ncomponent = 'hello'\n", "[trigger]\n",
     "app 'app' has no trigger: nothing would ever call it"),
]  # fmt: skip

NOT_SERVED_V2: Final = changes(LEAST_V2, _NOT_SERVED, ("sqs trigger", "a URL"))
