"""Templates of configuration values: text with ``{{ name }}`` where a variable's value goes.

There is no escape: every ``{{`` opens an expression, a lone ``}}`` is text.
Source: Spin 1.5, crates/config/src/template.rs and lib.rs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from containerd_shimkit.errors import ManifestError

_OPEN = "{{"
_CLOSE = "}}"


class TemplateError(ManifestError):
    """A template that cannot be read."""


@dataclass(frozen=True, slots=True)
class Literal:
    """Text that stands for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class VariableRef:
    """The place of a variable's value."""

    name: str


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template."""

    parts: tuple[Literal | VariableRef, ...]

    @property
    def variables(self) -> tuple[str, ...]:
        """The names it refers to, each once, in order."""
        return tuple(dict.fromkeys(p.name for p in self.parts if isinstance(p, VariableRef)))

    def render(self, values: Mapping[str, str]) -> str:
        """Return the text with every variable replaced; raises KeyError for one without value."""
        return "".join(p.text if isinstance(p, Literal) else values[p.name] for p in self.parts)


def parse_template(text: str) -> Template:
    """Split ``text`` into its parts; raises TemplateError that says what is wrong and where."""
    parts: list[Literal | VariableRef] = []
    at = 0
    while at < len(text):
        opened = text.find(_OPEN, at)
        if opened < 0:
            parts.append(Literal(text[at:]))
            break
        if opened > at:
            parts.append(Literal(text[at:opened]))
        closed = text.find(_CLOSE, opened + len(_OPEN))
        if closed < 0:
            raise TemplateError(f"`{{{{` at character {opened + 1} has no `}}}}`")
        name = text[opened + len(_OPEN) : closed].strip()
        if (fault := name_fault(name)) is not None:
            raise TemplateError(f"bad variable name `{name}` in template: {fault}")
        parts.append(VariableRef(name))
        at = closed + len(_CLOSE)
    return Template(tuple(parts))


def name_fault(name: str) -> str | None:
    """Return what is wrong with the name of a variable or configuration key, or None."""
    if not name:
        return "must not be empty"
    if (invalid := re.search(r"[^a-z0-9_]", name)) is not None:
        return f"`{invalid.group()}` is not a lower-case letter, digit or underscore"
    if not "a" <= name[0] <= "z":
        return "must start with a lower-case letter"
    if name.endswith("_"):
        return "must end with a lower-case letter or digit"
    if "__" in name:
        return "must not have two underscores in a row"
    return None


def literal(text: str) -> Template:
    """Return a template that is ``text`` whatever it holds."""
    return Template((Literal(text),) if text else ())
