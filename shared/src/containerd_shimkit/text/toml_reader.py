"""Reading checked values out of a parsed TOML file, with every fault reported at its place.

A ``Table`` is asked for its fields one by one and then told that this was all: what nobody asked
for is unknown. A fault does not stop the reading, the field gets an empty value instead; so the
values mean something only after ``Problems.raise_if_any``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, time
from difflib import get_close_matches
from typing import Any, TypeAlias, TypeVar

from containerd_shimkit.errors import ManifestError
from containerd_shimkit.text.toml_source import KeyPath, ParsedFile

Rule: TypeAlias = Callable[[str], str | None]
"""Returns what is wrong with a string, or None."""

MAX_REPORTED = 10
_MAX_SHOWN_CHARS = 80

_T = TypeVar("_T")


class Problems:
    """The faults found in one file, raised together, in the order of the text."""

    def __init__(self, source: ParsedFile) -> None:
        self.source = source
        self._found: list[tuple[int, int, str]] = []

    def add(self, path: KeyPath, message: str) -> None:
        """Report ``message`` at the place of ``path``."""
        where = self.source.where(path)
        line, column = where.rsplit(":", 2)[1:]
        self._found.append((int(line), int(column), f"{where}: {message}"))

    def raise_if_any(self) -> None:
        """Raise one ManifestError with a line for each fault, at most MAX_REPORTED of them."""
        if not self._found:
            return
        lines = [message for *_, message in sorted(self._found)]
        left_out = len(lines) - MAX_REPORTED
        if left_out > 0:
            lines[MAX_REPORTED:] = [f"{self.source.file}: and {left_out} more"]
        raise ManifestError("\n".join(lines))


class Table:
    """One table of the file, and which of its fields were asked for."""

    def __init__(
        self, problems: Problems, values: dict[str, Any], path: KeyPath = (), label: str = ""
    ) -> None:
        self._problems = problems
        self._values = values
        self._path = path
        self._known: list[str] = []
        self._reported: set[str] = set()
        self.label = label
        """What messages call the table, ``component[0] ("hello")``; empty for the whole file."""

    @property
    def where(self) -> str:
        """``file:line:column: label``, for errors that are found after the parsing."""
        return f"{self._problems.source.where(self._path)}: {self.label}"

    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def path_to(self, key: str | int) -> KeyPath:
        return (*self._path, key)

    def label_of(self, key: str, index: int | None = None) -> str:
        """Return the dotted name of a field, or of one element of it; indexes count from 0."""
        name = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
        label = f"{self.label}.{name}" if self.label else name
        return label if index is None else f"{label}[{index}]"

    def fault(self, key: str, rule: str) -> None:
        """Report that the value of ``key`` breaks ``rule``."""
        self._problems.add(
            self.path_to(key), f"{self.label_of(key)} = {shown(self._values[key])}: {rule}"
        )

    def element_fault(self, key: str, index: int, rule: str) -> None:
        """Report that element ``index`` of the array ``key`` breaks ``rule``."""
        value = shown(self._values[key][index])
        self._problems.add(
            (*self._path, key, index), f"{self.label_of(key, index)} = {value}: {rule}"
        )

    def where_element(self, key: str, index: int) -> str:
        """The same as ``where``, for one element of the array ``key``."""
        at = self._problems.source.where((*self._path, key, index))
        return f"{at}: {self.label_of(key, index)}"

    def problem(self, key: str, message: str) -> None:
        """Report ``message`` about ``key`` without its value: the name is at fault, or secret."""
        self._problems.add(self.path_to(key), f"{self.label_of(key)}: {message}")

    def complain(self, message: str) -> None:
        """Report ``message`` about the table as a whole."""
        self._problems.add(self._path, f"{self.label}: {message}")

    def foreign(self, hints: Mapping[str, str]) -> None:
        """Report each field that is of another version of the format. hints: by field."""
        for key in self._values.keys() & hints.keys():
            self.problem(key, hints[key])
            self._reported.add(key)

    def missing(self, key: str) -> None:
        """Report that a required field is not there."""
        table = f"{self.label}: " if self.label else ""
        self._problems.add(self._path, f"{table}required field `{key}` is missing")

    def done(self) -> None:
        """Report each field that was never asked for."""
        for key in self._values:
            if key not in self._known and key not in self._reported:
                table = f"{self.label}: " if self.label else ""
                message = f"{table}unknown field `{key}`; {nearest(key, self._known, 'fields')}"
                self._problems.add(self.path_to(key), message)

    def unknown(self) -> list[str]:
        """Return a message for each field that was never asked for: where it is of no effect."""
        return [
            f"{self._problems.source.where(self.path_to(key))}: {self.label_of(key)}: "
            f"unknown field, of no effect; {nearest(key, sorted(self._known), 'fields')}"
            for key in self._values
            if key not in self._known
        ]

    def raw(self, key: str) -> Any:
        """Return the value as it is, None if there is none."""
        self._known.append(key)
        return self._values.get(key)

    def required_string(self, key: str, rule: Rule | None = None) -> str:
        value = self.optional_string(key, rule)
        if key not in self._values:
            self.missing(key)
        return value or ""

    def optional_string(
        self, key: str, rule: Rule | None = None, *, secret: bool = False
    ) -> str | None:
        """Return a string or None; a ``secret`` one is not quoted in messages."""
        value = self._typed(key, str, "a string", secret=secret)
        if value is not None and rule is not None and (wrong := rule(value)) is not None:
            self.fault(key, wrong)
        return value

    def boolean(self, key: str) -> bool:
        return self._typed(key, bool, "a boolean") or False

    def optional_boolean(self, key: str) -> bool | None:
        return self._typed(key, bool, "a boolean")

    def integer(self, key: str, least: int = 0, most: int = (1 << 63) - 1) -> int | None:
        """Return an integer from ``least`` to ``most``, or None."""
        value = self._typed(key, int, "an integer")
        if value is not None and not least <= value <= most:
            limit = f"from {least} to {most}" if most < (1 << 63) - 1 else f"at least {least}"
            self.fault(key, f"must be {limit}")
            return None
        return value

    def strings(self, key: str, rule: Rule | None = None) -> tuple[str, ...]:
        """Return an array of strings, empty if there is none."""
        strings = []
        for index, value in enumerate(self._typed(key, list, "an array of strings") or ()):
            if not isinstance(value, str):
                self.element_fault(key, index, f"must be a string, not {type_name(value)}")
            elif rule is not None and (wrong := rule(value)) is not None:
                self.element_fault(key, index, wrong)
            else:
                strings.append(value)
        return tuple(strings)

    def required_strings_or_one(self, key: str) -> tuple[str, ...]:
        """Return the strings of an array, or a string alone."""
        if key not in self._values:
            self.missing(key)
        value = self.raw(key)
        if isinstance(value, str):
            return (value,)
        if value is not None and not isinstance(value, list):
            self.fault(key, f"must be a string or an array of strings, not {type_name(value)}")
            return ()
        return self.strings(key)

    def string_map(self, key: str, key_rule: Rule, value_rule: Rule) -> dict[str, str]:
        """Return a table of strings, empty if there is none."""
        table = self.optional_table(key)
        if table is None:
            return {}
        strings = {}
        for name in table.names():
            if (wrong := key_rule(name)) is not None:
                table.problem(name, wrong)
            strings[name] = table.required_string(name, value_rule)
        return strings

    def required_table(self, key: str) -> Table | None:
        """Return a table, None with the fault reported if there is none."""
        if key not in self._values:
            self.missing(key)
        return self.optional_table(key)

    def optional_table(self, key: str) -> Table | None:
        values = self._typed(key, dict, "a table")
        if values is None:
            return None
        return Table(self._problems, values, self.path_to(key), self.label_of(key))

    def child_tables(self) -> list[tuple[str, Table]]:
        """Return every field, each of which must be a table."""
        found = ((name, self.optional_table(name)) for name in self.names())
        return [(name, table) for name, table in found if table is not None]

    def tables(self, key: str, *, required: bool = True) -> list[Table]:
        """Return an array of tables."""
        if required and key not in self._values:
            self.missing(key)
        found = []
        name = f"an array of tables [[{self.label_of(key)}]]"
        for index, values in enumerate(self._typed(key, list, name) or ()):
            if isinstance(values, dict):
                found.append(self.element_table(key, index))
            else:
                self.element_fault(key, index, f"must be a table, not {type_name(values)}")
        return found

    def element_table(self, key: str, index: int) -> Table:
        """Return element ``index`` of the array ``key``, which is a table."""
        path = (*self._path, key, index)
        return Table(self._problems, self._values[key][index], path, self.label_of(key, index))

    def _typed(self, key: str, wanted: type[_T], name: str, *, secret: bool = False) -> _T | None:
        value = self.raw(key)
        if value is None or type(value) is wanted:
            return value
        report = self.problem if secret else self.fault
        report(key, f"must be {name}, not {type_name(value)}")
        return None


def nearest(name: str, known: Iterable[str], kind: str) -> str:
    """Return ``did you mean `x`?``, or the list of what is known if nothing is like ``name``."""
    names = list(dict.fromkeys(known))
    close = get_close_matches(name.lower(), names, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"known {kind}: " + (", ".join(names) or "none")


def shown(value: Any) -> str:
    """Return a value as a message quotes it: strings as in TOML, long ones cut short.

    What is in an array or a table is not shown: it may be a secret.
    """
    if isinstance(value, dict | list) and value:
        return "{...}" if isinstance(value, dict) else "[...]"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."


def type_name(value: Any) -> str:
    """Return the TOML name of a value's type, with its article."""
    match value:
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a float"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "a table"
        case date() | time():
            return "a date or time"
    return type(value).__name__
