from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shimkit.errors import ManifestError
from containerd_shimkit.text.json_source import load_json

TEXT = """\
{
  "a": [1, {"b": "x\\n\\u00e9"}, []],
  "c d" : {"e": -1.5e3, "f": null},
  "g": {}, "h": true
}
"""


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ((), "f:1:1"),
        (("a",), "f:2:3"),
        (("a", 0), "f:2:9"),
        (("a", 1), "f:2:12"),
        (("a", 1, "b"), "f:2:13"),
        (("a", 2), "f:2:32"),
        (("c d", "f"), "f:3:25"),
        (("h",), "f:4:12"),
        (("h", "missing"), "f:4:12"),
    ],
)
def test_positions(path: tuple[str | int, ...], where: str) -> None:
    assert load_json(TEXT, "f").where(path) == where


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f:1:1: invalid JSON: expecting value"),
        ('{\n"a" 1}', "f:2:5: invalid JSON: expecting ':' delimiter"),
        ("[]", "f:1:1: must be an object"),
        ('{"a": NaN}', "f: invalid JSON: NaN is no JSON"),
        ('{"a": %s}' % ("1" * 5000), "f: invalid JSON: "),
        ('{"a": %s}' % ("[" * 100_000), "f: arrays or objects are nested too deeply"),
        ('"%s"' % ("x" * (1 << 20)), "f: 1048578 characters exceed the limit of 1048576"),
    ],
)  # fmt: skip
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load_json(text, "f")
    assert str(caught.value).startswith(message)


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), VALUES), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_every_member_is_found(value: dict[str, object], indent: int | None, ascii_: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
    source = load_json(text, "f")
    assert source.data == value
    lines = text.split("\n")
    for path, at in source.positions.items():
        if path and isinstance(path[-1], str):
            assert lines[at.line - 1][at.column - 1 :].startswith(
                json.dumps(path[-1], ensure_ascii=ascii_)
            )
