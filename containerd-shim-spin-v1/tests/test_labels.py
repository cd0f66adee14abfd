"""What components ask for, and what the runtime configuration has."""

from __future__ import annotations

import pytest

from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.runtime_config.labels import check_labels
from containerd_shim_spin_v1.runtime_config.reader import parse_runtime_config
from containerd_shimkit.errors import ManifestError

MANIFEST = """\
spin_manifest_version = 2
[application]
name = "a"
[[trigger.http]]
route = "/"
component = "c"
[component.c]
source = "c.wasm"
"""
CONFIG = """\
[key_value_store.cache]
type = "redis"
url = "redis://h"
[key_value_store.cosmos]
type = "azure_cosmos"
account = "a"
database = "d"
container = "c"
[key_value_store.dynamo]
type = "aws_dynamo"
region = "r"
table = "t"
[sqlite_database.old]
type = "spin"
[sqlite_database.remote]
type = "libsql"
url = "https://h"
token = "s3cret"
"""
REMOTE = '[llm_compute]\ntype = "remote_http"\nurl = "https://h"\nauth_token = "s3cret"\n'
LOCAL = '[llm_compute]\ntype = "spin"\n'


def check(lines: str, config: str) -> None:
    check_labels(parse_manifest(MANIFEST + lines, "/spin.toml"), parse_runtime_config(config))


@pytest.mark.parametrize(
    ("lines", "config"),
    [
        ("", CONFIG + LOCAL),  # nobody asks for what is not supported
        ('key_value_stores = ["default"]\nsqlite_databases = ["default"]', ""),
        ('key_value_stores = ["default", "cache"]\nsqlite_databases = ["old"]', CONFIG),
        ('ai_models = ["llama"]', REMOTE),
    ],
)
def test_what_there_is(lines: str, config: str) -> None:
    check(lines, config)


LLM = 'there are no models here: the runtime configuration needs [llm_compute] with type = "remote'


@pytest.mark.parametrize(
    ("lines", "config", "message"),
    [
        ('key_value_stores = ["cach"]', CONFIG, "component.c.key_value_stores: 'cach' is not in "
         "the runtime configuration: add [key_value_store.cach]; it has cache, cosmos, default, d"),
        ('sqlite_databases = ["db"]', "", "component.c.sqlite_databases: 'db' is not in the runtime"
         " configuration: add [sqlite_database.db]; it has default"),
        ('key_value_stores = ["cosmos"]', CONFIG, "[key_value_store.cosmos] of the runtime "
         'configuration: type "azure_cosmos" is not supported: use "redis" or "spin"'),
        ('key_value_stores = ["dynamo"]', CONFIG, 'type "aws_dynamo" is not supported'),
        ('sqlite_databases = ["remote"]', CONFIG, 'type "libsql" is not supported: use "spin"'),
        ('ai_models = ["llama"]', "", LLM),
        ('ai_models = ["llama"]', LOCAL, LLM),
    ],
)  # fmt: skip
def test_what_there_is_not(lines: str, config: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        check(lines, config)
    assert str(caught.value).startswith("/spin.toml:7:")
    assert message in str(caught.value)


def test_every_fault_has_a_line() -> None:
    with pytest.raises(ManifestError) as caught:
        check('key_value_stores = ["a", "b"]\nai_models = ["llama"]', "")
    assert len(str(caught.value).splitlines()) == 3
