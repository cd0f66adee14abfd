from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.runtime_config.model import RuntimeConfig
from containerd_shim_spin_v1.runtime_config.reader import parse_runtime_config
from containerd_shim_spin_v1.variables.dotenv_file import parse_dotenv
from containerd_shim_spin_v1.variables.sources import make_providers
from containerd_shim_spin_v1.variables.values import (
    EnvironmentProvider,
    InvalidNameError,
    Provider,
    ProviderError,
    UndefinedVariableError,
    VariableError,
    Variables,
    environment_providers,
)
from containerd_shimkit.errors import ManifestError, MissingFileError, ShimError

MANIFEST = """\
spin_manifest_version = 2
[application]
name = "app"
[variables]
token = { required = true, secret = true }
api_host = { default = "api.example" }
optional = { default = "" }
[[trigger.http]]
route = "/"
component = "one"
[component.one]
source = "one.wasm"
allowed_outbound_hosts = [
  "https://{{ api_host }}", "{{ optional }}", "https://{{ optional }}", "redis://r"
]
[component.one.variables]
literal = "x"
both = "<{{ token }}@{{ api_host }}>"
optional = "{{ optional }}"
[component.two]
source = "two.wasm"
"""


def no_tls() -> ssl.SSLContext:
    raise AssertionError("nobody is asked")


class Known:
    """A provider that knows some variables, and remembers what it was asked."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values
        self.asked: list[str] = []
        self.closed = False

    async def get(self, name: str) -> str | None:
        self.asked.append(name)
        return self.values.get(name)

    async def close(self) -> None:
        self.closed = True


class Broken:
    """A provider that cannot be reached."""

    async def get(self, name: str) -> str | None:
        raise ProviderError(f"vault: {name}: connection refused")

    async def close(self) -> None:
        pass


def variables(*providers: Any) -> Variables:
    return Variables(parse_manifest(MANIFEST), providers)


@pytest.mark.parametrize(
    ("name", "value"),
    [("literal", "x"), ("both", "<t@api.example>"), ("optional", "")],
)
def test_value(name: str, value: str) -> None:
    assert asyncio.run(variables(Known({"token": "t"})).get("one", name)) == value


def test_first_provider_that_knows_has_the_say() -> None:
    providers = [Known({"api_host": "first"}), Known({"api_host": "second", "token": ""})]
    assert asyncio.run(variables(*providers).get("one", "both")) == "<@first>"
    assert providers[1].asked == ["token"]


@pytest.mark.parametrize(
    ("component", "name", "error", "message"),
    [
        ("one", "nothing", UndefinedVariableError, "component 'one' has no variable 'nothing'"),
        ("one", "token", UndefinedVariableError, "component 'one' has no variable 'token'"),
        ("two", "literal", UndefinedVariableError, "component 'two' has no variable 'literal'"),
        ("zzz", "literal", UndefinedVariableError, "component 'zzz' has no variable"),
        ("one", "Bad", InvalidNameError, "bad variable name 'Bad': `B` is not a lower-case"),
        ("one", "", InvalidNameError, "must not be empty"),
        ("one", "both", ProviderError, "no provider has a value for required variable 'token'"),
    ],
)
def test_no_value(component: str, name: str, error: type[VariableError], message: str) -> None:
    with pytest.raises(error) as caught:
        asyncio.run(variables().get(component, name))
    assert message in str(caught.value)


def test_failure_of_a_provider_is_no_reason_to_ask_the_next() -> None:
    with pytest.raises(ProviderError, match="vault: token: connection refused"):
        asyncio.run(variables(Broken(), Known({"token": "t"})).get("one", "both"))


def test_required_variables_are_checked_at_once() -> None:
    asyncio.run(variables(Known({"token": ""})).check_required())
    with pytest.raises(ProviderError) as caught:
        asyncio.run(variables().check_required())
    assert str(caught.value) == (
        "no value for required variable token: set SPIN_VARIABLE_TOKEN in the container's "
        "environment"
    )


def test_variables_with_a_default_are_not_asked_for_at_the_start() -> None:
    known = Known({"token": ""})
    asyncio.run(variables(known).check_required())
    assert known.asked == ["token"]


def test_close_closes_all_providers() -> None:
    providers = [Known({}), Known({})]
    asyncio.run(variables(*providers).close())
    assert all(provider.closed for provider in providers)


@pytest.mark.parametrize(
    ("values", "allowed", "denied"),
    [
        ({}, "api.example", "other.example"),
        ({"api_host": "other.example"}, "other.example", "api.example"),
        ({"optional": "https://more.example"}, "api.example", "more.example"),
    ],
)
def test_hosts_with_templates(values: dict[str, str], allowed: str, denied: str) -> None:
    if "optional" in values:  # `https://{{ optional }}` is no entry then
        with pytest.raises(VariableError, match="with the values of optional an entry is of"):
            asyncio.run(variables(Known(values)).allowed_hosts(_one()))
        return
    hosts = asyncio.run(variables(Known(values)).allowed_hosts(_one()))
    assert hosts.allows("https", allowed)
    assert not hosts.allows("https", denied)
    assert hosts.allows("redis", "r")
    assert len(hosts.entries) == 2


def _one() -> Any:
    return parse_manifest(MANIFEST).component("one")


PROVIDERS = [
    # version, environment, .env, value of api_key
    pytest.param(2, {"SPIN_VARIABLE_API_KEY": "a"}, {}, "a", id="prefix"),
    pytest.param(1, {"SPIN_VARIABLE_API_KEY": "a"}, {}, "a", id="prefix, version 1"),
    pytest.param(1, {"SPIN_CONFIG_API_KEY": "a"}, {}, "a", id="older prefix"),
    pytest.param(2, {"SPIN_CONFIG_API_KEY": "a"}, {}, None, id="older prefix in version 2"),
    pytest.param(
        1, {"SPIN_CONFIG_API_KEY": "a", "SPIN_VARIABLE_API_KEY": "b"}, {}, "b", id="both prefixes"
    ),
    pytest.param(2, {"API_KEY": "a"}, {}, "a", id="the container's own"),
    pytest.param(
        2, {"API_KEY": "a", "SPIN_VARIABLE_API_KEY": "b"}, {}, "b", id="prefix before that"
    ),
    pytest.param(2, {"api_key": "a", "SPIN_VARIABLE_api_key": "b"}, {}, None, id="capitals only"),
    pytest.param(2, {}, {"SPIN_VARIABLE_API_KEY": "a"}, "a", id=".env"),
    pytest.param(1, {}, {"SPIN_CONFIG_API_KEY": "a"}, "a", id=".env, older prefix"),
    pytest.param(2, {}, {"API_KEY": "a"}, None, id=".env without prefix"),
    pytest.param(2, {"API_KEY": "a"}, {"SPIN_VARIABLE_API_KEY": "b"}, "a", id=".env comes last"),
    pytest.param(2, {"SPIN_VARIABLE_API_KEY": ""}, {}, "", id="empty is a value"),
]


@pytest.mark.parametrize(("version", "env", "dotenv", "value"), PROVIDERS)
def test_environment(
    version: int, env: dict[str, str], dotenv: dict[str, str], value: str | None
) -> None:
    async def first() -> str | None:
        for provider in environment_providers(version, env, dotenv):
            if (found := await provider.get("api_key")) is not None:
                return found
        return None

    assert asyncio.run(first()) == value


CONFIG = """\
[[variables_provider]]
type = "static"
values = { a = "static" }
[[variables_provider]]
type = "env"
prefix = "MINE"
dotenv_path = "/volume/mine.env"
"""


def test_providers_of_the_runtime_configuration_come_first(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SPIN_VARIABLE_D=dotenv\nSPIN_VARIABLE_A=never\n")
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "mine.env").write_text("MINE_B=mine\nMINE_A=never\n")
    env = {"SPIN_VARIABLE_A": "never", "SPIN_VARIABLE_B": "never", "MINE_C": "env"}
    config = parse_runtime_config(CONFIG)
    providers = make_providers(tmp_path, env, config, 2, no_tls)
    assert asyncio.run(found(providers, "abcde")) == ["static", "mine", "env", "dotenv", None]


async def found(providers: Sequence[Provider], names: str) -> list[str | None]:
    values = []
    for name in names:
        answers = [await provider.get(name) for provider in providers]
        values.append(next((answer for answer in answers if answer is not None), None))
    return values


def test_usual_providers(tmp_path: Path) -> None:
    providers = make_providers(tmp_path, {"SPIN_CONFIG_A": "x"}, RuntimeConfig(), 1, no_tls)
    assert asyncio.run(found(providers, "ab")) == ["x", None]


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        ("type = 'env'\ndotenv_path = 'x'", MissingFileError, "/x: no such file: a variables pr"),
        ("type = 'azure_key_vault'\nvault_url = 'https://v'", ManifestError,
         "variables provider 'azure_key_vault' needs `client_id`, `tenant_id` and `client_secret`"),
    ],
)  # fmt: skip
def test_provider_that_cannot_be(
    tmp_path: Path, lines: str, error: type[ShimError], message: str
) -> None:
    config = parse_runtime_config(f"[[variables_provider]]\n{lines}\n")
    with pytest.raises(error, match=message):
        make_providers(tmp_path, {}, config, 2, no_tls)


def test_bad_dotenv_of_the_image(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("'A")
    with pytest.raises(ManifestError, match=r"^/\.env:1: is no NAME=value"):
        make_providers(tmp_path, {}, RuntimeConfig(), 2, no_tls)


def test_prefix_of_ones_own() -> None:
    provider = EnvironmentProvider({"MINE_A": "x"}, "MINE")
    assert asyncio.run(provider.get("a")) == "x"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("A=b\nC = d\n", {"A": "b", "C": "d"}),
        ("# comment\n\nexport A=b # why\n", {"A": "b"}),
        ("A='b # c'\nB=\"d\\ne\"\n", {"A": "b # c", "B": "d\ne"}),
        ("A=\nB\n", {"A": ""}),
        ("A=b\r\nC=d", {"A": "b", "C": "d"}),
        ("A=b\nB=${A}/${HOME}/${NONE}\n", {"A": "b", "B": "b//root/"}),
        ("A='x\ny'\n", {"A": "x\ny"}),
    ],
)
def test_dotenv(text: str, values: dict[str, str]) -> None:
    assert parse_dotenv(text, {"HOME": "/root"}) == values


def test_bad_dotenv_names_the_line() -> None:
    with pytest.raises(ManifestError, match=r"^/\.env:2: is no NAME=value"):
        parse_dotenv("A=b\n'C\nD=e\n", {}, "/.env")
