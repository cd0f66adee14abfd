"""Manifests: each field, and what is refused with which words and at which place.

A full manifest says behind each field whether it is ``# required``, ``# optional``, or, of a pair
that exactly one must be of, ``# either``. ``fields`` lists them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HEX: Final = "0123456789abcdef" * 4
"""A hash of content."""

_FIELD: Final = re.compile(r"([\w.-]+) = .*# (required|optional|either)")
_WRONG: Final = "1979-05-27"
"""A date, which no field is."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a full manifest."""

    line: int
    """From 1."""
    name: str
    need: str

    def without(self, text: str) -> str:
        """Return the manifest without it."""
        return self._with(text, "")

    def wrong(self, text: str) -> str:
        """Return the manifest with a value that it cannot have."""
        return self._with(text, f"{self.name} = {_WRONG}")

    def _with(self, text: str, line: str) -> str:
        lines = text.split("\n")
        lines[self.line - 1] = line
        return "\n".join(lines)


def fields(text: str) -> list[Field]:
    """Return the fields of a full manifest."""
    found = [(number, _FIELD.fullmatch(line)) for number, line in enumerate(text.split("\n"), 1)]
    return [Field(number, *match.groups()) for number, match in found if match is not None]


@dataclass(frozen=True, slots=True)
class Fault:
    """A manifest that is refused."""

    rule: str
    text: str
    message: str
    """A part of the error."""
    sample: bool = False

    def __str__(self) -> str:
        return self.rule


def changes(
    base: str, rows: Sequence[tuple[str, str, str, str]], sample: Sequence[str] = ()
) -> list[Fault]:
    """Return a fault for each row: rule, text of ``base``, what takes its place, message.

    sample: rules.
    """
    for rule, old, _, _ in rows:
        assert old in base, rule
    return [
        Fault(rule, base.replace(old, new), message, rule in sample)
        for rule, old, new, message in rows
    ]


def fills(
    form: str, rows: Sequence[tuple[str, str, str]], name: str, sample: Sequence[str] = ()
) -> list[Fault]:
    """Return a fault for each row: rule, what takes the place of ``{}`` in ``form``, message.

    name: takes the place of ``{H}`` in messages.
    """
    return [
        Fault(
            rule,
            form.replace("{}", value.replace("{SHA}", f"sha256:{HEX}").replace("{HEX}", HEX)),
            message.replace("{H}", name),
            rule in sample,
        )
        for rule, value, message in rows
    ]
