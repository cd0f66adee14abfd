from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerd_shim_spin_v1.manifest.templates import (
    Literal,
    TemplateError,
    VariableRef,
    name_fault,
    parse_template,
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        pytest.param("", (), id="empty"),
        pytest.param("a", (Literal("a"),), id="literal"),
        pytest.param(
            "a-{{ x }}-b", (Literal("a-"), VariableRef("x"), Literal("-b")), id="in the middle"
        ),
        pytest.param("{{x}}{{\ty_1 }}", (VariableRef("x"), VariableRef("y_1")), id="two"),
        pytest.param("a }} b", (Literal("a }} b"),), id="lone close is text"),
        pytest.param("{ x }", (Literal("{ x }"),), id="single braces are text"),
        pytest.param("{{ x }}}}", (VariableRef("x"), Literal("}}")), id="close after close"),
    ],
)
def test_template_parts(text: str, parts: tuple[Literal | VariableRef, ...]) -> None:
    assert parse_template(text).parts == parts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{{ a }} {{ b", "`{{` at character 9 has no `}}`", id="unclosed"),
        pytest.param("{{", "`{{` at character 1 has no `}}`", id="only open"),
        pytest.param("{{ }}", "must not be empty", id="no name"),
        pytest.param("{{ a b }}", "not a lower-case letter", id="two words"),
        pytest.param("{{{ a }}", "not a lower-case letter", id="three braces"),
    ],
)
def test_bad_template(text: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse_template(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["a", "abc", "a1b2c3", "a_1", "a_1_b_3"])
def test_good_name(name: str) -> None:
    assert name_fault(name) is None


@pytest.mark.parametrize("name", ["", "aX", "1bc", "_x", "x.y", "x_", "a__b", "x-y", "é"])
def test_bad_name(name: str) -> None:
    assert name_fault(name) is not None


def test_variables_are_named_once_in_order() -> None:
    assert parse_template("{{ b }}{{ a }}{{ b }}").variables == ("b", "a")


@given(st.text().filter(lambda text: "{{" not in text), st.text())
def test_render_puts_values_in_unread(literal: str, value: str) -> None:
    """A value that looks like a template is not read as one."""
    assert parse_template(literal + " {{ x }}").render({"x": value}) == f"{literal} {value}"
