"""What single values of a manifest have to look like: each function returns the fault, or None."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from containerd_shim_spin_v1.manifest.model import Variable
from containerd_shim_spin_v1.manifest.templates import TemplateError, parse_template
from containerd_shim_spin_v1.outbound.allowed_hosts import SKIPPED, entry_fault
from containerd_shimkit.text.toml_reader import Rule, nearest


def not_empty(text: str) -> str | None:
    return None if text else "must not be empty"


# Paths of requests


def route_fault(route: str) -> str | None:
    """The rule of version 1.

    A missing ``/`` in front is put there by the router, as Spin 1.2.1 and later do. Refused is
    what no request path can look like.
    """
    if (fault := _path_characters_fault(route)) is not None:
        return fault
    if "..." in route.removesuffix("/").split("/")[:-1]:
        return '"..." is a wildcard only as the last part of a route'
    return None


def route_v2_fault(route: str) -> str | None:
    """The rule of version 2, which knows ``:name`` and ``*`` besides ``...``."""
    if (fault := route_fault(route)) is not None:
        return fault
    parts = route.strip("/").split("/")
    if "*" in parts[:-1]:
        return '"*" is a wildcard only as the last part of a route'
    for part in parts:
        if part.startswith("*") and part != "*":
            return f"a wildcard has no name: did you mean `*` for `{part}`?"
        if part == ":":
            return "a part that matches anything must be named, as in `/:id`"
    return None


def base_fault(base: str) -> str | None:
    if base and not base.startswith("/"):
        return f'must start with "/"; did you mean "/{base}"?'
    if "..." in base.split("/"):
        return '"..." is a wildcard only as the last part of a route'
    return _path_characters_fault(base)


def _path_characters_fault(path: str) -> str | None:
    invalid = re.search(r"[^!-~]|[?#]", path)
    if invalid is None:
        return None
    if invalid.group() in "?#":
        return f"must be a path only, without `{invalid.group()}`"
    return "a character that no request path can hold must be percent-encoded"


# Names


def printable_fault(text: str) -> str | None:
    if not text or not text.isprintable():
        return "must be printable text"
    return None


def kebab_fault(text: str) -> str | None:
    """Component ids of version 2: labels of the component model."""
    if "_" in text and kebab_fault(kebab := text.replace("_", "-").lower()) is None:
        return f"words are joined by `-`, not `_`; did you mean `{kebab}`?"
    if _are_words(text.split("-")):
        return None
    return (
        "must be words of letters and digits that start with a letter, each all lower or all upper "
        "case, joined by single hyphens"
    )


def label_fault(label: str) -> str | None:
    """Store and database labels of version 1: labels of the component model with ``_``."""
    if _are_words(label.split("_")):
        return None
    return (
        "must be words of letters and digits that start with a letter, each all lower or all upper "
        "case, joined by single underscores"
    )


def label_v2_fault(label: str) -> str | None:
    """Those of version 2, where either separator will do, but one of them only."""
    if _are_words(label.split("_")) or _are_words(label.split("-")):
        return None
    return (
        "must be words of letters and digits that start with a letter, each all lower or all upper "
        "case, joined by single hyphens or by single underscores"
    )


def _are_words(words: list[str]) -> bool:
    return all(re.fullmatch(r"[a-z][a-z0-9]*|[A-Z][A-Z0-9]*", word) for word in words)


def env_name_fault(name: str) -> str | None:
    if not name or "=" in name or "\0" in name:
        return "a variable's name must not be empty nor contain `=` or NUL"
    return None


def env_value_fault(value: str) -> str | None:
    return "must not contain a NUL" if "\0" in value else None


# Sources


def path_fault(path: str) -> str | None:
    if not path or "\0" in path:
        return "must be the path of a .wasm file"
    return None


def url_fault(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme == "https" and parts.hostname
    except ValueError:
        valid = False
    return None if valid else "must be an https:// URL"


def digest_fault(digest: str) -> str | None:
    if re.fullmatch(r"sha256:[0-9a-fA-F]{64}", digest):
        return None
    return "must be `sha256:` and 64 hexadecimal digits"


def package_fault(package: str) -> str | None:
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*:[A-Za-z][A-Za-z0-9-]*", package):
        return None
    return "must be namespace:name, as in `acme:cart`"


# Templates


def template_rule(variables: Mapping[str, Variable]) -> Rule:
    """Return the rule of text in which ``variables`` may be used."""

    def fault(text: str) -> str | None:
        try:
            unknown = [name for name in parse_template(text).variables if name not in variables]
        except TemplateError as exc:
            return str(exc)
        if not unknown:
            return None
        hint = nearest(unknown[0], variables, "variables")
        return f"variable `{unknown[0]}` is not declared; {hint}"

    return fault


def address_rule(variables: Mapping[str, Variable]) -> Rule:
    """Return the rule of a server's address, a template."""
    well_formed = template_rule(variables)
    return lambda text: not_empty(text) or well_formed(text)


def host_rule(variables: Mapping[str, Variable]) -> Rule:
    """Return the rule of ``allowed_outbound_hosts``.

    An entry with templates is looked at with the defaults of its variables, if all have one.
    """
    well_formed = template_rule(variables)

    def fault(text: str) -> str | None:
        if (wrong := well_formed(text)) is not None:
            return wrong
        template = parse_template(text)
        if not template.variables:
            return entry_fault(text)
        defaults = {name: variables[name].default for name in template.variables}
        values = {name: value for name, value in defaults.items() if value is not None}
        if len(values) < len(defaults) or (filled := template.render(values)) in SKIPPED:
            return None
        if (wrong := entry_fault(filled)) is None:
            return None
        if any(variables[name].secret for name in values):  # then nothing of it is shown
            return "with the defaults of its variables it is no scheme://host[:port]"
        return f"with the defaults of its variables it is `{filled}`: {wrong}"

    return fault
