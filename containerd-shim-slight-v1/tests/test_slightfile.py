"""Slightfiles good and bad: every rule has a case."""

from __future__ import annotations

import pytest

from containerd_shim_slight_v1.slightfile.model import ConfigReference
from containerd_shim_slight_v1.slightfile.reader import check_configs, parse_slightfile
from containerd_shim_slight_v1.slightfile.resources import RESOURCES
from containerd_shimkit.errors import ExitCode, ManifestError

V1 = 'specversion = "0.1"\n'
V2 = 'specversion = "0.2"\n'


def capability(resource: str, name: str, configs: str = "") -> str:
    text = f'[[capability]]\nresource = "{resource}"\nname = "{name}"\n'
    return text + (f"[capability.configs]\n{configs}\n" if configs else "")


def old_capability(name: str) -> str:
    return f'[[capability]]\nname = "{name}"\n'


# Good ones


def test_full_file_of_version_2() -> None:
    file = parse_slightfile(
        V2
        + capability("http", "my-rest-api")
        + capability(
            "keyvalue.redis",
            "cache",
            'REDIS_ADDRESS = "redis://h:6379"\nA = "${envvars.X}"\nB = "${usersecrets.x}"\n'
            'C = "${azapp.y}"\nD = "${local.z}"\nE = "$ {envvars.x}"\nF = "x${envvars.x}"',
        )
        + capability("messaging.filesystem", "*")
    )
    http, keyvalue, messaging = file.capabilities
    assert (file.version, file.secret_store, file.warnings) == ("0.2", None, ())
    assert (http.resource.family, http.name, http.configs) == ("http", "my-rest-api", None)
    assert file.serves_http
    assert (keyvalue.resource.name, keyvalue.name) == ("keyvalue.redis", "cache")
    assert keyvalue.where == "slightfile.toml:5:1: capability[1]"
    assert keyvalue.configs == {
        "REDIS_ADDRESS": ConfigReference("local", "redis://h:6379"),
        "A": ConfigReference("envvars", "X"),
        "B": ConfigReference("usersecrets", "x"),
        "C": ConfigReference("azapp", "y"),
        "D": ConfigReference("local", "z"),
        "E": ConfigReference("local", "$ {envvars.x}"),
        "F": ConfigReference("local", "x${envvars.x}"),
    }
    assert messaging.name is None


def test_full_file_of_version_1() -> None:
    file = parse_slightfile(
        V1
        + 'secret_store = "configs.usersecrets"\n'
        + old_capability("kv.redis")
        + old_capability("lockd.etcd")
        + '[[secret_settings]]\nname = "a"\nvalue = "x"\n'
        + '[[secret_settings]]\nname = "a"\nvalue = "y"\n'
    )
    assert (file.version, file.secret_store) == ("0.1", "usersecrets")
    assert [c.resource.name for c in file.capabilities] == [
        "keyvalue.redis",
        "distributed_locking.etcd",
    ]
    assert file.secrets == {"a": "x"}
    assert file.config(file.capabilities[0], "KEY") == ConfigReference("usersecrets", "KEY")
    assert not file.serves_http


@pytest.mark.parametrize("name", sorted(RESOURCES))
def test_every_resource_in_both_versions(name: str) -> None:
    for text in (V1 + old_capability(name), V2 + capability(name, "x")):
        (found,) = parse_slightfile(text).capabilities
        assert found.resource is RESOURCES[name]


@pytest.mark.parametrize(
    "text",
    [
        V1,
        V2,
        # The last two names may be the same: they are of different families.
        V2 + capability("messaging.mosquitto", "*") + capability("keyvalue.filesystem", "*"),
        V2 + capability("keyvalue.filesystem", "a") + capability("keyvalue.azblob", "b"),
        V2 + capability("messaging.filesystem", "a") + capability("keyvalue.filesystem", "a"),
        V1 + old_capability("kv.redis") + old_capability("kv.filesystem"),
        V2 + 'secret_store = "configs.azapp"\n',
    ],
)
def test_accepted(text: str) -> None:
    parse_slightfile(text)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (V2 + "colour = 1\n", "2:1: colour"),
        (
            V2 + capability("http", "a") + "[capability.config]\na = 1\n",
            "5:1: capability[0].config",
        ),
        (V1 + old_capability("http") + "configs = 1\n", "4:1: capability[0].configs"),
    ],
)
def test_unknown_field_is_a_warning(text: str, where: str) -> None:
    (warning,) = parse_slightfile(text).warnings
    assert warning.startswith(f"slightfile.toml:{where}: unknown field, of no effect; ")


# Bad ones


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1:1: required field `specversion` is missing"),
        (capability("http", "a"), "1:1: required field `specversion` is missing"),
        ('specversion = "0.3"', '1:1: specversion = "0.3": known versions: 0.1, 0.2'),
        ("specversion = 0.1", "1:1: specversion = 0.1: must be a string, not a float"),
        ("specversion =", "1:14: invalid TOML: invalid value"),
        (
            V1 + capability("http", "a"),
            "2:1: capability[0]: you are using a 0.1 specversion, but you are using a 0.2 "
            "capability format",
        ),
        (
            V2 + capability("http", "a") + old_capability("http"),
            "5:1: capability[1]: you are using a 0.2 specversion, but you are using a 0.1 "
            "capability format",
        ),
        (
            V2 + capability("keyvalue.rediss", "a"),
            '3:1: capability[0].resource = "keyvalue.rediss": did you mean `keyvalue.redis`?',
        ),
        (
            V1 + old_capability("mq.rabbit"),
            '3:1: capability[0].name = "mq.rabbit": ',
        ),
        (
            V2 + '[[capability]]\nresource = "http"\n',
            "2:1: capability[0]: required field `name` is missing",
        ),
        (
            V2 + "[[capability]]\n",
            "2:1: capability[0]: you are using a 0.2 specversion, but you are using a 0.1 ",
        ),
        (V2 + "capability = 1\n", "2:1: capability = 1: must be an array of tables"),
        (
            V2 + capability("http", "a") + "configs = 1\n",
            "5:1: capability[0].configs = 1: must be a table, not an integer",
        ),
        (
            V2 + capability("http", "a", "X = 1"),
            "6:1: capability[0].configs.X: must be a string, not an integer",
        ),
        (
            V2 + capability("http", "a", 'X = "${cruel}"'),
            "6:1: capability[0].configs.X: a reference is ${STORE.KEY}",
        ),
        (
            V2 + capability("http", "a", 'X = "${vault.x}"'),
            "6:1: capability[0].configs.X: unknown store 'vault'; known stores: azapp, envvars, "
            "local, usersecrets",
        ),
        (
            V2 + capability("http", "a", 'X = "${envvars.x.y}"'),
            "6:1: capability[0].configs.X: unknown store 'envvars.x'; did you mean `envvars`?",
        ),
        (
            V2 + capability("keyvalue.redis", "a") + capability("keyvalue.filesystem", "a"),
            "7:1: capability[1].name: the namespace a is already defined in the slightfile",
        ),
        (
            V2 + capability("keyvalue.redis", "a") + capability("kv.filesystem", "*"),
            "7:1: capability[1].name: the namespace * is already defined in the slightfile",
        ),
        (
            V2 + capability("keyvalue.redis", "*") + capability("keyvalue.filesystem", "a"),
            "7:1: capability[1].name: the namespace a is already defined in the slightfile",
        ),
        (
            V1 + old_capability("kv.redis") * 2,
            "5:1: capability[1].name: the namespace kv.redis is already defined in the slightfile",
        ),
        (
            V1 + 'secret_store = "configs.vault"\n',
            '2:1: secret_store = "configs.vault": known secret stores: configs.azapp, ',
        ),
        (
            V1 + '[[secret_settings]]\nname = "a"\n',
            "2:1: secret_settings[0]: required field `value` is missing",
        ),
        (
            V1 + '[[secret_settings]]\nname = "a"\nvalue = 5\n',
            "4:1: secret_settings[0].value: must be a string, not an integer",
        ),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_slightfile(text)
    assert str(caught.value).startswith(f"slightfile.toml:{message}")
    assert caught.value.exit_code == ExitCode.MANIFEST


def test_every_fault_is_reported() -> None:
    text = V2 + capability("nothing", "a") + capability("http", "a", 'X = "${x}"')
    with pytest.raises(ManifestError) as caught:
        parse_slightfile(text)
    assert len(str(caught.value).splitlines()) == 2


def test_value_of_a_config_is_not_quoted() -> None:
    with pytest.raises(ManifestError) as caught:
        parse_slightfile(V2 + capability("sql.postgres", "a", 'X = "${hunter2}"'))
    assert "hunter2" not in str(caught.value)


# What is found by a name


def test_a_name_is_found_in_its_family() -> None:
    file = parse_slightfile(
        V2 + capability("keyvalue.redis", "a") + capability("keyvalue.filesystem", "b")
    )
    found = file.find("keyvalue", "b")
    assert found is not None
    assert found.resource.name == "keyvalue.filesystem"
    assert file.find("keyvalue", "c") is None
    assert file.find("messaging", "a") is None


def test_any_name_is_found_by_every_name() -> None:
    file = parse_slightfile(V2 + capability("keyvalue.redis", "*"))
    assert file.find("keyvalue", "whatever") is file.capabilities[0]
    assert file.find("keyvalue", "*") is file.capabilities[0]


def test_version_1_finds_the_last_of_a_family_by_every_name() -> None:
    file = parse_slightfile(V1 + old_capability("kv.redis") + old_capability("kv.filesystem"))
    assert file.find("keyvalue", "whatever") is file.capabilities[1]
    assert file.find("keyvalue", "kv.redis") is file.capabilities[0]


# Configs that cannot be done without


@pytest.mark.parametrize(
    "text",
    [
        V2 + capability("keyvalue.filesystem", "a"),
        V2 + capability("keyvalue.redis", "a", 'REDIS_ADDRESS = "redis://h"'),
        V1 + 'secret_store = "configs.envvars"\n' + old_capability("kv.redis"),
        V2
        + capability(
            "blobstore.aws_s3",
            "a",
            'AWS_ACCESS_KEY_ID = "a"\nAWS_SECRET_ACCESS_KEY = "b"\nAWS_DEFAULT_REGION = "c"',
        ),
    ],
)
def test_configs_are_there(text: str) -> None:
    check_configs(parse_slightfile(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            V2 + capability("kv.redis", "a"),
            "keyvalue.redis needs the config REDIS_ADDRESS: this capability needs a "
            "[capability.configs] section",
        ),
        (
            V2 + capability("messaging.mosquitto", "a", 'MOSQUITTO_HOST = "h"'),
            "messaging.mosquitto needs the config MOSQUITTO_PORT: no config of that name is in "
            "[capability.configs]",
        ),
        (
            V2
            + capability(
                "keyvalue.awsdynamodb",
                "a",
                'AWS_ACCESS_KEY_ID = "a"\nAWS_SECRET_ACCESS_KEY = "b"',
            ),
            "keyvalue.awsdynamodb needs the config AWS_REGION or AWS_DEFAULT_REGION: no config",
        ),
        (
            V1 + old_capability("kv.redis"),
            "keyvalue.redis needs the config REDIS_ADDRESS: a file of version 0.1 says by "
            '`secret_store` where it is ("configs.envvars")',
        ),
    ],
)
def test_config_that_is_lacking(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        check_configs(parse_slightfile(text))
    assert str(caught.value).startswith(f"slightfile.toml:2:1: capability[0]: {message}")


# Names that upstream's documents have


@pytest.mark.parametrize(
    "name",
    ["events", "configs.local", "sql.mysql", "keyvalue.memcached", "messaging.sqs", "pubsub.nats"],
)
def test_resource_that_upstream_never_had_or_gave_up(name: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_slightfile(V1 + old_capability(name))
    assert str(caught.value).startswith(f'slightfile.toml:3:1: capability[0].name = "{name}": ')


@pytest.mark.parametrize("backend", ["mosquitto", "confluent_apache_kafka"])
def test_pubsub_is_what_messaging_was_called(backend: str) -> None:
    file = parse_slightfile(V1 + old_capability(f"pubsub.{backend}"))
    assert file.capabilities[0].resource.name == f"messaging.{backend}"


def test_login_of_kafka_is_needed_only_where_there_is_one() -> None:
    configs = 'CAK_ENDPOINT = "h"\nCAK_SECURITY_PROTOCOL = "PLAINTEXT"\nCAK_GROUP_ID = "g"'
    text = V2 + capability("messaging.confluent_apache_kafka", "a", configs)
    check_configs(parse_slightfile(text))
    with pytest.raises(ManifestError, match="needs the config CAK_GROUP_ID"):
        check_configs(parse_slightfile(text.replace("CAK_GROUP_ID", "GROUP_ID")))
