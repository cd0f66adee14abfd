"""containerd's configuration as text: which runtimes it has, and adding and removing ours.

What is added stands at the end, between two lines of comment, so that everything else stays as it
is to the byte, and is again what it was when ours is removed. TOML lets a table follow anywhere.

Up to containerd 1.7 a file that names one runtime takes the default away, ``runc``: where that was
in force it is named beside ours, as part of what we add. k3s and RKE2 register some shims that they
find on their PATH, in the file that they make of the template; a table that comes twice is no TOML.

Source: containerd docs/cri/config.md, docs/PLUGINS.md; seen on 1.6.20 and 2.4.2: a file without
``version`` is of version 1, and every version is read by both. k3s: pkg/agent/containerd
(``findWasiRuntimes``) and pkg/agent/templates, whose field ``ExtraRuntimes`` has what it found.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

CRI_PLUGINS: Final = {
    1: "cri",
    2: "io.containerd.grpc.v1.cri",
    3: "io.containerd.cri.v1.runtime",
    4: "io.containerd.cri.v1.runtime",
}
"""The plugin that has the runtimes, by version of the configuration."""

_BEGIN: Final = "# BEGIN containerd-wasm-shims"
_END: Final = "# END containerd-wasm-shims"
_UNENDED: Final = " (the line before had no end)"
_NOTE: Final = (
    '# Written by "containerd-shim-NAME-v1 config --write"; "config --remove" takes it out.'
)
_BLOCK: Final = re.compile(
    rf"(?P<before>\n?)^{_BEGIN}(?P<unended>{re.escape(_UNENDED)})?\n"
    rf"(?P<content>.*?)^{_END}(?:\n|\Z)",
    re.M | re.S,
)
_HEADER: Final = re.compile(
    r"""^\s*\[plugins\.(?P<plugin>"[^"]+"|'[^']+'|[\w-]+)\.containerd\.runtimes\."""
    r"""(?P<name>"[^"]+"|'[^']+'|[\w-]+)\]""",
    re.M,
)


class ConfigTextError(Exception):
    """The configuration cannot be read, or cannot be added to; the message says where."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime as CRI knows it."""

    handler: str
    """What a RuntimeClass calls it."""
    type: str
    """``io.containerd.spin.v1``."""
    systemd_cgroup: bool = False

    @property
    def is_default(self) -> bool:
        """Whether it is containerd's own, which is only named so that it stays."""
        return self.type == "io.containerd.runc.v2"

    def lines(self, version: int, *, in_k3s_template: bool = False) -> str:
        """Return its tables for a configuration of this version.

        in_k3s_template: left out by k3s where it has registered the handler itself.
        """
        name = CRI_PLUGINS[version]
        quoted = name if re.fullmatch(r"[\w-]+", name) else f'"{name}"'
        table = f"plugins.{quoted}.containerd.runtimes.{_key(self.handler)}"
        text = f'[{table}]\n  runtime_type = "{self.type}"\n'
        if self.systemd_cgroup:
            text += f"  [{table}.options]\n    SystemdCgroup = true\n"
        if in_k3s_template:
            found = f'(index .ExtraRuntimes "{self.handler}").RuntimeType'
            text = f"{{{{ if not {found} }}}}\n{text}{{{{ end }}}}\n"
        return text


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'


def parse(text: str, file: str) -> dict[str, Any]:
    """Return the tables of a configuration. file: its name in messages. Raises ConfigTextError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigTextError(f"{file} is not TOML: {exc}") from None


def version_of(tables: Mapping[str, Any], file: str) -> int | None:
    """Return the version of a configuration, None of one that says nothing at all.

    Raises ConfigTextError for one that we do not know.
    """
    if not tables:
        return None
    version = tables.get("version", 1)
    if version == 0:
        return 1
    if not isinstance(version, int) or version not in CRI_PLUGINS:
        raise ConfigTextError(f"{file}: version = {version!r} is none of {list(CRI_PLUGINS)}")
    return version


def runtimes_of(tables: Mapping[str, Any]) -> dict[str, Runtime]:
    """Return the runtimes of a configuration by their handlers."""
    found = {}
    for plugin in dict.fromkeys(CRI_PLUGINS.values()):
        entries = _table(tables, "plugins", plugin, "containerd", "runtimes")
        for handler in entries:
            entry = _table(entries, handler)
            systemd = _table(entry, "options").get("SystemdCgroup") is True
            found[handler] = Runtime(handler, str(entry.get("runtime_type", "")), systemd)
    return found


def address_of(tables: Mapping[str, Any]) -> str:
    """Return where containerd listens. From version 4 on its server is a plugin."""
    server = _table(tables, "plugins", "io.containerd.server.v1.grpc") or _table(tables, "grpc")
    return str(server.get("address") or "/run/containerd/containerd.sock")


def _table(tables: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    for name in path:
        inner = tables.get(name)
        if not isinstance(inner, dict):
            return {}
        tables = inner
    return tables


def named_in(text: str) -> set[str]:
    """Return the handlers that have a table of their own in what need not be TOML: a template."""
    return {found["name"].strip("\"'") for found in _HEADER.finditer(text)}


def ours_in(text: str) -> dict[str, Runtime]:
    """Return the runtimes that we have added."""
    block = _BLOCK.search(text)
    if block is None:
        return {}
    try:
        return runtimes_of(tomllib.loads(re.sub(r"^\{\{.*\}\}$", "", block["content"], flags=re.M)))
    except tomllib.TOMLDecodeError:
        raise ConfigTextError(
            f'what is between "{_BEGIN}" and "{_END}" has been changed: take it out by hand'
        ) from None


def with_runtimes(
    text: str,
    runtimes: Iterable[Runtime],
    version: int,
    head: str = "",
    *,
    in_k3s_template: bool = False,
) -> str:
    """Return the text with these as ours, whatever we had added before; with none, without ours.

    head: what has to be in front of them in a configuration that says nothing else.
    """
    text = without_ours(text)
    tables = "".join(r.lines(version, in_k3s_template=in_k3s_template) for r in runtimes)
    if not tables:
        return text
    if any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
        head = ""
    unended = bool(text) and not text.endswith("\n")
    begin = _BEGIN + (_UNENDED if unended else "")
    before = "\n" if unended else ""
    return f"{text}{before}{begin}\n{_NOTE}\n{head}{tables}{_END}\n"


def without_ours(text: str) -> str:
    """Return the text as it was before the first of ours."""
    block = _BLOCK.search(text)
    if block is None:
        return text
    start, end = block.span()
    if block["before"] and not (block["unended"] and end == len(text)):
        start += 1
    return text[:start] + text[end:]
