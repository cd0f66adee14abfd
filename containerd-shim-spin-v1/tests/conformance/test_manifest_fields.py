"""Each field of the manifests: whether it has to be there, and that it has a type."""

from __future__ import annotations

import re

import pytest

from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shimkit.errors import ManifestError
from spin_rules.manifest_v1 import FULL_REDIS_V1, FULL_V1
from spin_rules.manifest_v2 import FULL_V2
from spin_rules.manifests import Field, fields

FULL = {"version 1": FULL_V1, "version 1, redis": FULL_REDIS_V1, "version 2": FULL_V2}
FIELDS = [
    pytest.param(text, field, id=f"{form}: {field.line} {field.name}")
    for form, text in FULL.items()
    for field in fields(text)
]


@pytest.mark.parametrize(("text", "field"), FIELDS)
def test_field_may_be_missing(text: str, field: Field) -> None:
    if field.need == "optional":
        parse_manifest(field.without(text))
        return
    with pytest.raises(ManifestError) as caught:
        parse_manifest(field.without(text))
    problem = f"required field `{field.name}` is missing" if field.need == "required" else "either"
    assert problem in str(caught.value)


@pytest.mark.parametrize(("text", "field"), FIELDS)
def test_field_has_a_type(text: str, field: Field) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(field.wrong(text))
    found = re.search(rf"^spin\.toml:{field.line}:\d+: .*", str(caught.value), re.MULTILINE)
    assert found is not None, caught.value
    assert field.name in found.group()


@pytest.mark.parametrize("form", FULL)
def test_most_lines_are_fields(form: str) -> None:
    assert len(fields(FULL[form])) > 0.5 * len(FULL[form].split("\n"))
