"""``.wws.toml``: the language runtimes that a project brings along, below ``.wws/runtimes``.

A runtime is a WASI command that runs a worker's source. What is not installed is left out, as
upstream does; nothing is downloaded.

Source: wasm-workers-server 1.7 crates/config/src/lib.rs, crates/project/src/{lib,metadata}.rs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from containerd_shim_wws_v1.project.files import ProjectFiles
from containerd_shimkit.text.toml_reader import Problems, Table
from containerd_shimkit.text.toml_source import load_toml

FILE: Final = ".wws.toml"
BUILT_IN: Final = ("js", "wasm")
"""Extensions that no runtime of a project is asked for."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@ -]{0,199}")
_EXTENSION: Final = re.compile(r"[A-Za-z0-9_+-]{1,50}")


@dataclass(frozen=True, slots=True)
class Runtime:
    """An installed runtime."""

    name: str
    version: str
    extensions: tuple[str, ...]
    arguments: tuple[str, ...]
    directory: str
    """Where its files are, relative to the project."""
    binary: str
    """A file in its directory, as the other two."""
    polyfill: str | None = None
    wrapper: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def path(self, file: str) -> str:
        """Return where one of its files is."""
        return f"{self.directory}/{file}"


@dataclass(frozen=True, slots=True)
class Runtimes:
    """Those of a project."""

    installed: tuple[Runtime, ...] = ()
    warnings: tuple[str, ...] = ()

    def of(self, extension: str) -> Runtime | None:
        """Return the runtime for files of an extension: the first that names it."""
        found = (runtime for runtime in self.installed if extension in runtime.extensions)
        return next(found, None)

    @property
    def extensions(self) -> frozenset[str]:
        """Those that any runtime is for."""
        return frozenset(name for runtime in self.installed for name in runtime.extensions)


def load_runtimes(files: ProjectFiles) -> Runtimes:
    """Return what a project's ``.wws.toml`` names and the project holds.

    Raises ManifestError with all faults and their places.
    """
    text = files.read_text(FILE)
    if text is None:
        return Runtimes()
    source = load_toml(text, f"/{FILE}")
    problems = Problems(source)
    top = Table(problems, source.data)
    top.integer("version")
    installed, warnings = [], []
    for repository in top.tables("repositories"):
        name = repository.required_string("name", _name_rule)
        repository.optional_string("url")
        for table in repository.tables("runtimes", required=False):
            where = table.where
            runtime, others = _read_runtime(table, name)
            warnings += table.unknown()
            missing = [file for file in others if not files.has(runtime.path(file))]
            if missing:
                place = runtime.path(missing[0])
                warnings.append(
                    f"{where}: {runtime.name} {runtime.version} is not installed: /{place} is not "
                    "there (wws runtimes install)"
                )
            else:
                installed.append(runtime)
        warnings += repository.unknown()
    problems.raise_if_any()
    return Runtimes(tuple(installed), tuple(warnings + top.unknown()))


def _read_runtime(table: Table, repository: str) -> tuple[Runtime, list[str]]:
    """Return a runtime, and the names of all files that have to be there."""
    name = table.required_string("name", _name_rule)
    version = table.required_string("version", _name_rule)
    for key in ("tags", "status"):
        table.raw(key)
    files = {key: _file_name(table, key) for key in ("binary", "polyfill", "wrapper", "template")}
    if files["binary"] is None:
        table.missing("binary")
    runtime = Runtime(
        name=name,
        version=version,
        extensions=_extensions(table),
        arguments=table.strings("args", _no_nul),
        directory=f".wws/runtimes/{repository}/{name}/{version}",
        binary=files["binary"] or "",
        polyfill=files["polyfill"],
        wrapper=files["wrapper"],
        environment=table.string_map("envs", _no_nul, _no_nul),
    )
    return runtime, [file for file in files.values() if file is not None]


def _extensions(table: Table) -> tuple[str, ...]:
    extensions = table.strings("extensions", _extension_rule)
    if not extensions:
        table.complain("`extensions` must name at least one")
    return extensions


def _file_name(table: Table, key: str) -> str | None:
    file = table.optional_table(key)
    if file is None:
        return None
    for unused in ("url", "checksum"):  # for whoever installs it
        file.raw(unused)
    return file.required_string("filename", _name_rule)


def _name_rule(text: str) -> str | None:
    if _NAME.fullmatch(text):
        return None
    return "must be a name of letters, digits and `.`, `_`, `+`, `-`, which is one of a directory"


def _extension_rule(text: str) -> str | None:
    if text in BUILT_IN:
        return None  # listed for completeness; the shim's own is used
    return None if _EXTENSION.fullmatch(text) else "must be an extension without dot"


def _no_nul(text: str) -> str | None:
    return "must not contain a NUL" if "\0" in text else None
