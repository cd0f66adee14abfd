"""A real guest asks for its variables, by the interface of each generation."""

from __future__ import annotations

from typing import Any

import pytest

from containerd_shim_spin_v1.variables.values import ProviderError
from containerd_shimkit.testing.http import fetch

MANIFEST = """
spin_manifest_version = 2
[application]
name = "test"
[variables]
city = { default = "Bern" }
token = { required = true }
[[trigger.http]]
route = "/..."
component = "variables"
[component.variables]
source = "variables.wasm"
[component.variables.variables]
greeting = "Grüezi, {{ city }}"
token = "{{ token }}"
"""


@pytest.fixture
def app(image: Any) -> Any:
    image.component("variables", "/...")
    image.manifest(MANIFEST)
    return image


@pytest.mark.parametrize("version", ["v1", "v1.5", "v2"])
def test_values_and_errors(app: Any, version: str) -> None:
    answers: dict[str, str] = {}

    async def main(port: int) -> None:
        for name in ("greeting", "token", "city", "Bad-Name"):
            answers[name] = (await fetch(port, f"/{version}/{name}")).body.decode()

    app.run(main, SPIN_VARIABLE_TOKEN="s3cret")
    undefined = 1 if version == "v2" else 3
    invalid = 0 if version == "v2" else 1
    assert answers["greeting"] == "ok Grüezi, Bern"
    assert answers["token"] == "ok s3cret"
    assert answers["city"] == (f"error {undefined} component 'variables' has no variable 'city'")
    assert answers["Bad-Name"].startswith(f"error {invalid} bad variable name 'Bad-Name': ")


def test_a_variable_without_value_fails_the_start(app: Any) -> None:
    async def main(_port: int) -> None:
        raise AssertionError("it serves")

    with pytest.raises(ProviderError, match="set SPIN_VARIABLE_TOKEN in the container's environ"):
        app.run(main)
