from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shimkit.errors import ManifestError
from containerd_shimkit.text.toml_source import (
    MANIFEST_MAX_CHARS,
    KeyPath,
    load_toml,
    scan_positions,
)


def place(text: str, *path: str | int) -> tuple[int, int]:
    at = scan_positions(text)[path]
    return at.line, at.column


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        pytest.param("a = 1", ("a",), (1, 1), id="first key"),
        pytest.param("# c\n\n  a = 1", ("a",), (3, 3), id="after comment, indented"),
        pytest.param("a = 1\r\nb = 2", ("b",), (2, 1), id="crlf"),
        pytest.param("k = ['é', 2]", ("k", 1), (1, 11), id="non-ascii"),
        pytest.param("[t]\na = 1", ("t",), (1, 1), id="header"),
        pytest.param("[ a . b ]\nc = 1", ("a", "b", "c"), (2, 1), id="spaced header"),
        pytest.param("[a.b]", ("a",), (1, 2), id="implicit table"),
        pytest.param("[a.b]\n[a]", ("a",), (2, 1), id="header after implicit"),
        pytest.param("a.b . c = 1", ("a", "b"), (1, 3), id="dotted middle"),
        pytest.param("a.b . c = 1", ("a", "b", "c"), (1, 7), id="dotted end"),
        pytest.param('"a.b".c = 1', ("a.b", "c"), (1, 7), id="quoted dotted"),
        pytest.param('"\\u0061\\"" = 1', ('a"',), (1, 1), id="escaped key"),
        pytest.param("'a\\' = 1", ("a\\",), (1, 1), id="literal key"),
        pytest.param('"]" = 1\nb = 2', ("b",), (2, 1), id="bracket in key"),
        pytest.param('["a]b"]\nc = 1', ("a]b", "c"), (2, 1), id="bracket in header"),
        pytest.param("[[c]]\nx=1\n[[c]]\nx=2", ("c", 1), (3, 1), id="second of array"),
        pytest.param("[[c]]\nx=1\n[[c]]\nx=2", ("c", 1, "x"), (4, 1), id="key in second"),
        pytest.param("[[c]]\n[c.t]\nx=1\n[[c]]\n[c.t]\nx=1", ("c", 1, "t", "x"), (6, 1), id="sub"),
        pytest.param("[[a]]\n[[a.b]]\n[[a.b]]\nk=1", ("a", 0, "b", 1, "k"), (4, 1), id="nested"),
        pytest.param("[[a]]\n[[a.b]]\n[[a]]\n[[a.b]]", ("a", 1, "b", 0), (4, 1), id="restart"),
        pytest.param("a = { b = 1, c = { d = 2 } }", ("a", "c", "d"), (1, 20), id="inline"),
        pytest.param("a = {}\nb = 1", ("b",), (2, 1), id="empty inline"),
        pytest.param("a = [1,\n # x ]\n 2,\n]\nb = 1", ("a", 1), (3, 2), id="array element"),
        pytest.param("a = [1,\n # x ]\n 2,\n]\nb = 1", ("b",), (5, 1), id="after array"),
        pytest.param("a = [[], [1, [2]]]", ("a", 1, 1, 0), (1, 15), id="nested arrays"),
        pytest.param("a = [{ x = 1 }, { x = 2 }]", ("a", 1, "x"), (1, 19), id="tables in array"),
        pytest.param('a = """\nb = 1\n[c]\n"""\nd = 1', ("d",), (5, 1), id="multi-line"),
        pytest.param("a = '''\nb = 1\n'''\nd = 1", ("d",), (4, 1), id="multi-line literal"),
        pytest.param('a = """x"""""\nd = 1', ("d",), (2, 1), id="quotes before the end"),
        pytest.param('a = """\\""""\nd = 1', ("d",), (2, 1), id="escaped quote at the end"),
        pytest.param('a = ""\nd = 1', ("d",), (2, 1), id="empty string"),
        pytest.param('a = "# no, \\" ] }"\nd = 1', ("d",), (2, 1), id="signs in string"),
        pytest.param("a = 1979-05-27 07:32:00 # x\nd = 1", ("d",), (2, 1), id="date with space"),
        pytest.param("a = [1979-05-27 07:32:00, 2]", ("a", 1), (1, 27), id="date in array"),
    ],
)
def test_position_of_key(text: str, path: KeyPath, expected: tuple[int, int]) -> None:
    assert place(text, *path) == expected
    assert set(scan_positions(text)) == set(paths_of(tomllib.loads(text)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a = [1,\n  2,,]", "f.toml:2:5: invalid TOML: invalid value", id="value"),
        pytest.param("a = 1\na = 2", "f.toml:2:6: invalid TOML: cannot overwrite", id="twice"),
        pytest.param("a = [1,\n 2", "f.toml:2:3: invalid TOML: unclosed array", id="end of text"),
        pytest.param("a = " + "[" * 20_000, "f.toml", id="deep"),
        pytest.param("a." * 500_000 + "a = 1", "f.toml: arrays or tables", id="dotted key"),
        pytest.param("[" + "a." * 500_000 + "a]", "f.toml: arrays or tables", id="header"),
        pytest.param("x = {" + "a." * 200_000 + "a = 1}", "f.toml: arrays", id="dotted in table"),
        pytest.param("a.a = 1\n" * 2 + "b." * 99 + "b = 1", "f.toml: arrays", id="deep and bad"),
        pytest.param("a = " + "[" * 65 + "]" * 65, "f.toml: arrays", id="arrays"),
        pytest.param("a = [}", "f.toml:1:6: invalid TOML", id="brace in array"),
        pytest.param("a = [=]", "f.toml:1:6: invalid TOML", id="sign in array"),
        pytest.param("a = " + "1" * 5000, "f.toml: ", id="long integer"),
        pytest.param("#" * (MANIFEST_MAX_CHARS + 1), "characters exceed the limit", id="size"),
    ],
)
def test_bad_toml_is_refused_at_its_place(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load_toml(text, "f.toml")
    assert message in str(caught.value)


def test_where_falls_back_to_the_table_around() -> None:
    source = load_toml("\n[a]\nb = 1", "f.toml")
    assert source.where(("a", "missing")) == "f.toml:2:1"
    assert source.where(("missing",)) == "f.toml:1:1"


def paths_of(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, below in value.items():
            yield from paths_of(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from paths_of(below, (*path, index))


KEYS = st.text(alphabet="ab.\"'\\]#= é-", max_size=4)
STRINGS = st.text(alphabet="a\"'\\]}#=,\n {[", max_size=8)
VALUES = st.recursive(
    st.integers() | st.booleans() | STRINGS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=3),
    max_leaves=8,
)


class Writer:
    """Writes data as TOML, choosing anew among the ways to say each thing."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def pick(self, *choices: str) -> str:
        return self.draw(st.sampled_from(choices))

    def key(self, key: str) -> str:
        if key and all(c in "ab-" for c in key) and self.draw(st.booleans()):
            return key
        if "'" not in key and self.draw(st.booleans()):
            return f"'{key}'"
        return json.dumps(key)

    def string(self, value: str) -> str:
        style = self.pick("basic", "multi", "literal")
        if style == "literal" and "'" not in value:
            # A line feed right after the quotes is no part of the value.
            return f"'''{chr(10) if value[:1] == chr(10) else self.pick('', chr(10))}{value}'''"
        if style == "multi":
            escaped = value.replace("\\", "\\\\").replace('"""', '""\\"')
            if not value.endswith('"'):
                return f'"""\n{escaped}"""'
        return json.dumps(value)

    def value(self, value: Any) -> str:
        match value:
            case bool() | int():
                return json.dumps(value)
            case str():
                return self.string(value)
            case list():
                space = self.pick(" ", "\n", "\n# [ \" '\n")
                return "[" + space + f",{space}".join(map(self.value, value)) + space + "]"
        pairs = [f"{self.key(key)} = {self.value(below)}" for key, below in value.items()]
        return "{ " + ", ".join(pairs) + " }"

    def table(self, data: dict[str, Any], prefix: str = "") -> str:
        lines = []
        sections = []
        for key, value in data.items():
            name = self.key(key)
            dots = self.pick(".", " . ")
            full = prefix + dots + name if prefix else name
            tables = value if isinstance(value, list) else None
            if isinstance(value, dict) and self.draw(st.booleans()):
                sections.append(f"[{full}]\n{self.table(value, full)}")
            elif tables and all(isinstance(t, dict) for t in tables) and self.draw(st.booleans()):
                sections += [f"[[{full}]]\n{self.table(t, full)}" for t in tables]
            elif isinstance(value, dict) and value and self.draw(st.booleans()):
                lines += [f"{name}{dots}{self.key(k)} = {self.value(v)}" for k, v in value.items()]
            else:
                lines.append(f"{self.pick('', '  ')}{name} = {self.value(value)} # x = 1")
        return "\n".join([*lines, "# [no]", *sections]) + "\n"


@st.composite
def documents(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    data = draw(st.dictionaries(KEYS, VALUES, max_size=4))
    return data, Writer(draw).table(data)


@given(documents())
def test_positions_agree_with_tomllib(document: tuple[dict[str, Any], str]) -> None:
    """Each key tomllib finds has a position, nothing else has, and its header or key is there."""
    data, text = document
    assert tomllib.loads(text) == data
    positions = scan_positions(text)
    assert set(positions) == set(paths_of(data))
    lines = text.split("\n")
    for path, at in positions.items():
        here = lines[at.line - 1][at.column - 1 :]
        if isinstance(path[-1], str):
            assert here[0] in "['\"" or here.startswith(path[-1])
