from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_spin_v1.runtime_config.model import (
    AzureKeyVaultConfig,
    ClientTls,
    CosmosStore,
    DynamoStore,
    EnvConfig,
    FileDatabase,
    FileStore,
    LibsqlDatabase,
    LocalLlm,
    RedisStore,
    RemoteLlm,
    RuntimeConfig,
    StaticConfig,
    VaultConfig,
)
from containerd_shim_spin_v1.runtime_config.reader import load_runtime_config, parse_runtime_config
from containerd_shimkit.errors import ManifestError, MissingFileError

FULL = """\
state_dir = "/data"
log_dir = ""
max_instance_memory = 67108864

[[variables_provider]]
type = "vault"
url = "https://vault:8200"
token = "s3cret"
mount = "kv"
prefix = "app"
[[variables_provider]]
type = "azure_key_vault"
vault_url = "https://x.vault.azure.net/"
client_id = "id"
client_secret = "s3cret"
tenant_id = "tenant"
authority_host = "AzureChina"
[[variables_provider]]
type = "static"
values = { token = "s3cret" }
[[variables_provider]]
type = "env"
prefix = "MINE"
dotenv_path = "/data/.env"

[key_value_store.default]
type = "spin"
path = "/data/kv.db"
[key_value_store.memory]
type = "spin"
[key_value_store.cache]
type = "redis"
url = "redis://:s3cret@redis:6379"
[key_value_store.cosmos]
type = "azure_cosmos"
key = "s3cret"
account = "a"
database = "d"
container = "c"
[key_value_store.dynamo]
type = "aws_dynamo"
region = "r"
table = "t"
access_key = "a"
secret_key = "s3cret"
token = "s3cret"
consistent_read = true

[sqlite_database.default]
type = "spin"
path = "/data/db"
allow_attach_file = true
[sqlite_database.remote]
type = "libsql"
url = "https://db"
token = "s3cret"

[llm_compute]
type = "remote_http"
url = "http://llm:1234"
auth_token = "s3cret"
api_type = "open_ai"

[outbound_http]
connection_pooling = false
max_connections = 10
[outbound_redis]
max_connections = 1
[outbound_pg]
max_connections = 2
[outbound_mysql]
max_connections = 3
[outbound_mqtt]
max_connections = 4
max_payload_size_bytes = 65536

[outbound_networking]
block_networks = ["10.1.2.3/8", "private"]
max_socket_connections = 5

[[client_tls]]
component_ids = ["one"]
hosts = ["example.com"]
ca_roots_file = "roots.pem"
client_cert_file = "cert.pem"
client_private_key_file = "key.pem"
"""


def test_every_field() -> None:
    config = parse_runtime_config(FULL)
    assert config == RuntimeConfig(
        state_dir="/data",
        log_dir="",
        max_instance_memory=64 << 20,
        variables_providers=(
            VaultConfig(url="https://vault:8200", token="s3cret", mount="kv", prefix="app"),
            AzureKeyVaultConfig(
                vault_url="https://x.vault.azure.net/",
                client_id="id",
                client_secret="s3cret",
                tenant_id="tenant",
                authority_host="AzureChina",
            ),
            StaticConfig({"token": "s3cret"}),
            EnvConfig("MINE", "/data/.env"),
        ),
        key_value_stores={
            "default": FileStore("/data/kv.db"),
            "memory": FileStore(None),
            "cache": RedisStore("redis://:s3cret@redis:6379"),
            "cosmos": CosmosStore(key="s3cret", account="a", database="d", container="c"),
            "dynamo": DynamoStore(
                region="r",
                table="t",
                consistent_read=True,
                access_key="a",
                secret_key="s3cret",
                token="s3cret",
            ),
        },
        sqlite_databases={
            "default": FileDatabase("/data/db", True),
            "remote": LibsqlDatabase(url="https://db", token="s3cret"),
        },
        llm_compute=RemoteLlm(url="http://llm:1234", auth_token="s3cret", api_type="open_ai"),
        client_tls=(
            ClientTls(
                component_ids=("one",),
                hosts=("example.com",),
                use_platform_roots=False,
                use_webpki_roots=False,
                roots_file="roots.pem",
                cert_file="cert.pem",
                key_file="key.pem",
            ),
        ),
        connection_pooling=False,
        max_connections={"http": 10, "redis": 1, "pg": 2, "mysql": 3, "mqtt": 4},
        max_payload_size_bytes=65536,
        blocked_networks=(ipaddress.ip_network("10.0.0.0/8"),),
        block_private_networks=True,
        max_socket_connections=5,
    )
    assert "s3cret" not in repr(config)


def test_empty_file_is_the_default() -> None:
    assert parse_runtime_config("") == RuntimeConfig()


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("[[config_provider]]\ntype = 'env'", "variables_providers", (EnvConfig(None, None),)),
        ("[llm_compute]\ntype = 'spin'", "llm_compute", LocalLlm()),
        ("[outbound_http]", "connection_pooling", True),
        ("[outbound_http]\nmax_concurrent_requests = 0", "max_connections", {"http": 1}),
    ],
)
def test_single_field(text: str, name: str, value: Any) -> None:
    assert getattr(parse_runtime_config(text), name) == value


@pytest.mark.parametrize(
    ("lines", "platform", "webpki"),
    [
        ("", True, False),
        ("ca_use_webpki_roots = true", False, True),
        ("ca_use_platform_roots = true\nca_use_webpki_roots = true", True, True),
        ("ca_roots_file = 'x'", False, False),
        ("ca_roots_file = 'x'\nca_use_platform_roots = true", True, False),
    ],
)
def test_roots(lines: str, platform: bool, webpki: bool) -> None:
    text = f"[[client_tls]]\ncomponent_ids = ['a']\nhosts = ['b']\n{lines}"
    (tls,) = parse_runtime_config(text).client_tls
    assert (tls.use_platform_roots, tls.use_webpki_roots) == (platform, webpki)


FAULTS = [
    ("stat_dir = 1", "f:1:1: unknown field `stat_dir`; did you mean `state_dir`?"),
    ("state_dir = 1", "f:1:1: state_dir = 1: must be a string, not an integer"),
    ("state_dir = \"\\u0000\"", "must not contain a NUL"),
    ("max_instance_memory = 1", "must be from 65536 to 4294967296"),
    ("max_instance_memory = '1'", "must be an integer, not a string"),
    ("[variables_provider]\ntype = 'vault'\ntoken = 's3cret'",
     "variables_provider = {...}: must be an array of tables [[variables_provider]], not a table"),
    ("[[variables_provider]]", "variables_provider[0]: required field `type` is missing"),
    ("[[variables_provider]]\ntype = 'valut'", "unknown type; did you mean `vault`?"),
    ("[[variables_provider]]\ntype = 'vault'\ntokn = 's3cret'",
     "f:3:1: variables_provider[0]: unknown field `tokn`; did you mean `token`?"),
    ("[[variables_provider]]\ntype = 'vault'", "required field `url` is missing"),
    ("[[variables_provider]]\ntype = 'vault'\ntoken = ['s3cret']",
     "variables_provider[0].token: must be a string, not an array"),
    ("[[variables_provider]]\ntype = 'vault'\nurl = 'u://s3cret'",
     "variables_provider[0].url: must be a URL with http:// or https://"),
    ("[[variables_provider]]\ntype = 'azure_key_vault'\nvault_url = 'https://x'\nclient_id = ''",
     "needs `client_id`, `tenant_id` and `client_secret`, or none of them"),
    ("[[variables_provider]]\ntype = 'azure_key_vault'\nauthority_host = 'AzureChin'",
     "did you mean `AzureChina`?"),
    ("[[variables_provider]]\ntype = 'static'\nvalues = { A = 's3cret' }", "`A` is not a lower"),
    ("[[variables_provider]]\ntype = 'static'\nvalues = { a = 1 }", "values.a: must be a string"),
    ("[[config_provider]]\ntype = 'env'\n[[variables_provider]]\ntype = 'env'",
     "config_provider: is the old name of `variables_provider`, which is given, too"),
    ("[key_value_store.a]\ntype = 'sqlite'", "unknown type; known types: spin, redis, azure_c"),
    ("[key_value_store.a]\ntype = 'redis'\nurl = 's3cret'",
     "key_value_store.a.url: must be a URL with redis:// or rediss://"),
    ("[key_value_store.'a b']\ntype = 'spin'", 'key_value_store."a b": must be words'),
    ("[key_value_store]\na = 'x'", "must be a table, not a string"),
    ("[key_value_store.a]\ntype = 'spin'\nurl = 'x'", "key_value_store.a: unknown field `url`"),
    ("[sqlite_database.a]\ntype = 'libsql'\nurl = 'libsql://x'\ntoken = 's3cret'",
     "sqlite_database.a.url: must be a URL with http:// or https://"),
    ("[llm_compute]", "llm_compute: required field `type` is missing"),
    ("[llm_compute]\ntype = 'remote_http'\napi_type = 'opnai'", "did you mean `open_ai`?"),
    ("[outbound_http]\nmax_connections = 0", "must be at least 1"),
    ("[outbound_http]\nmax_connections = 1\nmax_concurrent_requests = 1", "is the old name of"),
    ("[outbound_pg]\nconnection_pooling = true", "outbound_pg: unknown field `connection_pooling`"),
    ("[outbound_redi]\nmax_connections = 1", "did you mean `outbound_redis`?"),
    ("[outbound_networking]\nblock_networks = ['10.0.0.1']", "must be a network, as 10.0.0.0/8"),
    ("[outbound_networking]\nblock_network = []", "did you mean `block_networks`?"),
    ("[outbound_networking]\nmax_total_connections = 6",
     "f:2:1: outbound_networking.max_total_connections = 6: there is no limit over all"),
    ("[[client_tls]]\nhosts = ['a']", "client_tls[0]: needs `component_ids`"),
    ("[[client_tls]]\ncomponent_ids = ['a']\nhosts = ['b:1']", "`:` is not allowed in it"),
    ("[[client_tls]]\ncomponent_ids = ['a']\nhosts = ['b']\nclient_cert_file = 'x'",
     "needs `client_cert_file` and `client_private_key_file`, or neither"),
    ("a = ", "f:1:5: invalid TOML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_fault_is_refused_and_no_secret_shown(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_runtime_config(text, "f")
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_where_the_file_is(tmp_path: Path) -> None:
    assert load_runtime_config(tmp_path, {}) == RuntimeConfig()
    (tmp_path / "runtime-config.toml").write_text('state_dir = "/image"')
    assert load_runtime_config(tmp_path, {}).state_dir == "/image"
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "x.toml").write_text('state_dir = "/volume"')
    for named in ("/volume/x.toml", "volume/x.toml"):
        assert load_runtime_config(tmp_path, {"RUNTIME_CONFIG_FILE": named}).state_dir == "/volume"


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"^/x: no such file: RUNTIME_CONFIG_FILE names it"):
        load_runtime_config(tmp_path, {"RUNTIME_CONFIG_FILE": "/x"})


@given(st.data())
def test_any_mutilation_is_read_or_refused(data: st.DataObject) -> None:
    lines = FULL.split("\n")
    index = data.draw(st.integers(0, len(lines) - 1))
    name = lines[index].partition(" = ")[0]
    value = data.draw(st.sampled_from(["1", "true", "''", "[]", "{}", "[[1]]", "[{}]", "{a={}}"]))
    lines[index] = f"{name} = {value}"
    found = "f:"
    try:
        parse_runtime_config("\n".join(lines), "f")
    except ManifestError as exc:
        found = str(exc)
    assert all(line.startswith("f:") for line in found.split("\n"))
    assert "s3cret" not in found
