"""Manifests of version 1.

Sources: Spin 1.5 crates/loader/src/{local/config,common,validation}.rs, Spin 2.0
crates/manifest/src/schema/v1.rs for ``allowed_outbound_hosts``.
"""

from __future__ import annotations

from typing import Final

from spin_rules.manifests import HEX, Fault, changes, fills

FULL_V1: Final = f"""\
spin_manifest_version = "1"  # required
name = "app"  # required
version = "1.0.0"  # required
description = "what it does"  # optional
authors = ["A <a@example.com>", "B"]  # optional
namespace = "old"  # optional

[trigger]
type = "http"  # required
base = "/base"  # required

[variables.token]
required = true  # either
secret = true  # optional
[variables.greeting]
default = "hi"  # either
[variables.empty]
default = ""  # either

[[component]]
id = "one"  # required
description = "first"  # optional
files = ["static/**/*", {{ source = "assets", destination = "/assets" }}]  # optional
exclude_files = ["static/*.key"]  # optional
allowed_http_hosts = ["example.com"]  # optional
allowed_outbound_hosts = ["redis://redis:6379"]  # optional
key_value_stores = ["default", "mixed_CASE_w0rds"]  # optional
sqlite_databases = ["default"]  # optional
ai_models = ["llama2-chat"]  # optional
environment.NAME = "a=b"  # optional
[component.source]
url = "https://example.com/one.wasm"  # required
digest = "sha256:{HEX.upper()}"  # required
[component.config]
message = "{{{{ greeting }}}}, {{{{ token }}}}"  # optional
[component.build]
command = "make"  # required
workdir = "src"  # optional
watch = ["**/*.rs"]  # optional
[component.trigger]
route = "/one/..."  # required
[component.trigger.executor]
type = "wagi"  # required
entrypoint = "run"  # optional
argv = "a ${{ARGS}}"  # optional

[[component]]
id = "two"  # required
source = "two.wasm"  # required
trigger.route = "/two"
"""

FULL_REDIS_V1: Final = """\
spin_version = "1"
name = "app"  # required
version = "1.0.0"  # required
[trigger]
type = "redis"  # required
address = "redis://r"  # required
[[component]]
id = "one"  # required
source = "one.wasm"  # required
[component.trigger]
channel = "c"  # required
executor = { type = "spin" }  # optional
"""

HEAD_V1: Final = """\
spin_manifest_version = "1"
name = "app"
version = "1.0.0"
trigger = { type = "http", base = "/" }
"""  # 4 lines
HELLO_V1: Final = """\
[[component]]
id = "hello"
source = "hello.wasm"
"""  # lines 5 to 7
ROUTE_V1: Final = """\
[component.trigger]
route = "/hello"
"""
LEAST_V1: Final = HEAD_V1 + HELLO_V1 + ROUTE_V1

# {H}: how the component is called.  {HEX}: a hash.

_APP: Final = [
    ("unknown field", 'version = "1.0.0"', "versoin = 1",
     "spin.toml:3:1: unknown field `versoin`; did you mean `version`?"),
    ("missing", 'version = "1.0.0"', "", "spin.toml:1:1: required field `version` is missing"),
    ("type", 'name = "app"', "name = 3",
     "spin.toml:2:1: name = 3: must be a string, not an integer"),
    ("no name", 'name = "app"', 'name = ""', '2:1: name = "": must not be empty'),
    ("element type", 'name = "app"', 'name = "app"\nauthors = ["a",\n  1979-05-27]',
     'spin.toml:4:3: authors[1] = "1979-05-27": must be a string, not a date or time'),
    ("no version", 'spin_manifest_version = "1"', "",
     "required field `spin_manifest_version` is missing"),
    ("other version", 'spin_manifest_version = "1"', 'spin_version = "2"',
     'spin.toml:1:1: spin_version = "2": must be "1", or for version 2 `spin_manifest'),
    ("boolean version", 'spin_manifest_version = "1"', "spin_version = true",
     'spin_version = true: must be "1"'),
    ("version twice", 'spin_manifest_version = "1"',
     'spin_version="1"\nspin_manifest_version="1"',
     'spin.toml:1:1: spin_version = "1": the version is given already'),
    ("no base", ', base = "/"', "", "spin.toml:4:1: trigger: required field `base` is missing"),
    ("base without slash", 'base = "/"', 'base = "x"',
     'spin.toml:4:28: trigger.base = "x": must start with "/"'),
    ("base dots", 'base = "/"', 'base = "/..."', "only as the last part of a route"),
    ("unknown in trigger", 'base = "/"', 'base = "/", bsae = 1',
     "trigger: unknown field `bsae`; did you mean `base`?"),
    ("no trigger type", 'type = "http", base = "/"', 'base = "/"',
     "trigger: required field `type` is missing"),
    ("trigger no table", 'trigger = { type = "http", base = "/" }', "trigger = 'http'",
     'trigger = "http": must be a table, not a string'),
    ("no address", 'type = "http", base = "/"', 'type = "redis"',
     "required field `address` is missing"),
    ("variable name", 'version = "1.0.0"', 'version = "1"\nvariables.Bad = { default = "x" }',
     "spin.toml:4:11: variables.Bad: `B` is not a lower-case letter"),
    ("both", 'version = "1.0.0"',
     'version = "1"\nvariables.v = { required = true, default = "x" }',
     "variables.v: must have either `required = true` or a `default`"),
    ("neither", 'version = "1.0.0"', 'version = "1"\nvariables.v = { secret = true }',
     "variables.v: must have either `required = true` or a `default`"),
    ("required no boolean", 'version = "1.0.0"',
     'version = "1"\nvariables.v = { required = "yes" }',
     'variables.v.required = "yes": must be a boolean, not a string'),
    ("unknown in variable", 'version = "1.0.0"',
     'version = "1"\nvariables.v = { defualt = "x" }',
     "variables.v: unknown field `defualt`; did you mean `default`?"),
    ("secret is not shown", 'version = "1.0.0"',
     'version = "1"\nvariables.v = { default = 99, secret = true }',
     "variables.v.default: must be a string, not an integer"),
]  # fmt: skip

_COMPONENT: Final = [
    ("unknown", "sorce = 'x'", "8:1: {H}: unknown field `sorce`; did you mean `source`?"),
    ("like nothing", "zzz = 'x'", "{H}: unknown field `zzz`; known fields: id, "),
    ("quoted unknown", "'Key Value' = 1", "{H}: unknown field `Key Value`"),
    ("description", "description = 1", "{H}.description = 1: must be a string"),
    ("files", "files = 'x'", '{H}.files = "x": must be an array, not a string'),
    ("file", "files = ['a', 1]", "8:15: {H}.files[1] = 1: must be a pattern or { source"),
    ("absolute pattern", "files = ['/a']", '8:10: {H}.files[0] = "/a": must be relative'),
    ("pattern with ..", "files = ['a/../b']", "must not contain `..`"),
    ("empty pattern", "files = ['']", "must not be empty"),
    ("pattern with ** in a part", "files = ['a**']", "`**` must be a whole part of the path"),
    ("pattern with three stars", "files = ['***']", "wildcards are either `*` or `**`"),
    ("pattern with an open set", "files = ['a[b']", "`[` at character 2 has no `]`"),
    ("no destination", "files = [{ source = 'a' }]",
     "{H}.files[0]: required field `destination` is missing"),
    ("unknown in placement", "files = [{ source = 'a', destination = '/a', mode = 1 }]",
     "8:46: {H}.files[0]: unknown field `mode`"),
    ("source", "files = [{ source = '/a', destination = '/a' }]", "source must be relative"),
    ("destination", "files = [{ source = 'a', destination = 'a' }]",
     "destination must be absolute"),
    ("destination up", "files = [{ source = 'a', destination = '/a/../b' }]",
     "destination must not contain `..`"),
    ("exclude_files", "exclude_files = ['/a']", '{H}.exclude_files[0] = "/a": must be'),
    ("environment", "environment = { A = 1 }", "8:17: {H}.environment.A = 1: must be "),
    ("environment name", "environment = { 'A=B' = '' }", '{H}.environment."A=B": a variable'),
    ("environment value", 'environment = { A = "\\u0000" }', "must not contain a NUL"),
    ("store label", "key_value_stores = ['a-b']", '{H}.key_value_stores[0] = "a-b": '),
    ("database label", "sqlite_databases = ['']", "must not be empty"),
    ("all hosts", "allowed_http_hosts = ['*']", '{H}.allowed_http_hosts[0] = "*": did you mean'),
    ("http host", "allowed_http_hosts = ['h/p']", "without a path"),
    ("host", "allowed_outbound_hosts = ['redis://r', 'r:1']",
     '8:40: {H}.allowed_outbound_hosts[1] = "r:1": must be scheme://host[:port]; did you mean'),
    ("models", "ai_models = 'x'", 'ai_models = "x": must be an array of strings'),
    ("config key", "config = { A = '' }", "{H}.config.A: `A` is not a lower-case"),
    ("template", "config = { a = '{{ b' }", "has no `}}`"),
    ("variable", "config = { a = '{{ b }}' }",
     "variable `b` is not declared; known variables: none"),
    ("build", "build = { }", "8:1: {H}.build: required field `command` is missing"),
    ("in build", "build = { command = '', x = 1 }", "{H}.build: unknown field `x`"),
]  # fmt: skip

_SOURCE: Final = [
    ("type", "3", "must be a path or { url, digest }, not an integer"),
    ("empty", "''", "must be the path of a .wasm file"),
    ("no digest", "{ url = 'https://x' }", "required field `digest` is missing"),
    ("no url",
     "{ digest = '{SHA}' }",
     "field `url` is missing"),
    ("http",
     "{ url = 'http://x', digest = '{SHA}' }",
     "https://"),
    ("bad url",
     "{ url = 'https://[', digest = '{SHA}' }",
     "https://"),
    ("short", "{ url = 'https://x', digest = 'sha256:12' }", "64 hexadecimal"),
    ("no method",
     "{ url = 'https://x', digest = '{HEX}' }",
     "`sha256:` and"),
    ("unknown",
     "{ url = 'https://x', digest = '{SHA}', dgst = '' }",
     "`dgst`"),
]  # fmt: skip

_TRIGGER: Final = [
    ("query", "route = '/a?b'", "must be a path only, without `?`"),
    ("fragment", "route = '/a#b'", "must be a path only, without `#`"),
    ("space", "route = '/a b'", "must be percent-encoded"),
    ("not ascii", "route = '/é'", "must be percent-encoded"),
    ("dots", "route = '/a/.../b'", '"..." is a wildcard only as the last part'),
    ("type", "route = 3", "{H}.trigger.route = 3: must be a path or { private ="),
    ("unknown", "rout = '/a'", "{H}.trigger: unknown field `rout`; did you mean `route`?"),
    ("missing", "", "8:1: {H}.trigger: required field `route` is missing"),
    ("executor no table", "route = '/'\nexecutor = 'wagi'",
     '{H}.trigger.executor = "wagi": must be a table'),
    ("no type", "route = '/'\nexecutor = {}", "{H}.trigger.executor: required field `type` is"),
    ("unknown executor", "route = '/'\nexecutor = { type = 'wagy' }",
     '10:14: {H}.trigger.executor.type = "wagy": unknown executor; did you mean `wagi`?'),
    ("argv for spin", "route = '/'\nexecutor = { type = 'spin', argv = '' }",
     "{H}.trigger.executor: unknown field `argv`"),
    ("empty entrypoint", "route = '/'\nexecutor = { type = 'wagi', entrypoint = '' }",
     "must not be empty"),
]  # fmt: skip

_REDIS: Final = [
    ("redis without address", 'address = "redis://r"', "", "field `address` is missing"),
    ("redis by another executor", 'type = "spin"', 'type = "wagi"', 'must be "spin"'),
    ("redis with a route", "channel =", 'route = "/"\nchannel =', "unknown field `route`"),
    ("redis with a base", "address =", 'base = "/"\naddress =', "unknown field `base`"),
]  # fmt: skip

_H: Final = 'component[0] ("hello")'


def _faults() -> list[Fault]:
    head, hello, trigger = HEAD_V1, HELLO_V1, "[component.trigger]\n"
    found = changes(LEAST_V1, _APP, ("unknown field", "base without slash"))
    for rows, form in (
        (_COMPONENT, f"{head}{hello}{{}}\n{ROUTE_V1}"),
        (_SOURCE, head + hello.replace('"hello.wasm"', "{}") + ROUTE_V1),
        (_TRIGGER, f"{head}{hello}{trigger}{{}}\n"),
    ):
        found += fills(form, rows, _H, ("unknown field", "unknown executor"))
    return found + changes(FULL_REDIS_V1, _REDIS)


FAULTS_V1: Final = _faults()
