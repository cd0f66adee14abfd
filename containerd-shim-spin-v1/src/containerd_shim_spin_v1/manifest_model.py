"""What an app's manifest says, whichever version of the format it was written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from containerd_shim_spin_v1.templates import Template

WAGI_ENTRYPOINT = "_start"
WAGI_ARGV = "${SCRIPT_NAME} ${ARGS}"


def _place() -> str:
    """``file:line:column: name`` of an entry, for errors found later; no part of its value."""
    return field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class HttpTrigger:
    """The app serves HTTP."""

    base: str
    """Prefix of every route; ``/`` or empty for none."""
    where: str = _place()


@dataclass(frozen=True, slots=True)
class RedisTrigger:
    """The app is called for messages of Redis channels."""

    address: str
    where: str = _place()


@dataclass(frozen=True, slots=True)
class PluginTrigger:
    """A trigger this shim knows nothing of; its settings are unchecked."""

    type: str
    settings: Mapping[str, Any]
    where: str = _place()


AppTrigger: TypeAlias = HttpTrigger | RedisTrigger | PluginTrigger


@dataclass(frozen=True, slots=True)
class Executor:
    """How a component is called."""

    type: Literal["spin", "wagi"] = "spin"
    entrypoint: str = WAGI_ENTRYPOINT
    """Function to call; ``wagi`` only, as ``argv``."""
    argv: str = WAGI_ARGV
    """Arguments separated by single spaces, with two placeholders."""


@dataclass(frozen=True, slots=True)
class HttpComponentTrigger:
    """The route a component serves."""

    route: str
    executor: Executor = Executor()


@dataclass(frozen=True, slots=True)
class RedisComponentTrigger:
    """The channel a component is called for."""

    channel: str
    executor: Executor = Executor()


@dataclass(frozen=True, slots=True)
class PluginComponentTrigger:
    """Settings of a component for a trigger this shim knows nothing of."""

    settings: Mapping[str, Any]


ComponentTrigger: TypeAlias = HttpComponentTrigger | RedisComponentTrigger | PluginComponentTrigger


@dataclass(frozen=True, slots=True)
class FileSource:
    """A ``.wasm`` file of the image."""

    path: str
    """Absolute, or relative to the manifest's directory."""


@dataclass(frozen=True, slots=True)
class UrlSource:
    """A ``.wasm`` file to be downloaded."""

    url: str
    sha256: str
    """Of the file, in lower-case hex."""


@dataclass(frozen=True, slots=True)
class FileGlob:
    """Files the guest sees at the path they have below the manifest's directory."""

    pattern: str
    where: str = _place()


@dataclass(frozen=True, slots=True)
class FilePlacement:
    """A directory the guest sees at another path."""

    source: str
    """Relative to the manifest's directory."""
    destination: str
    """Absolute path in the guest."""
    where: str = _place()


FileEntry: TypeAlias = FileGlob | FilePlacement


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the app; exactly one of ``required`` and a default is given."""

    required: bool
    default: str | None
    secret: bool


@dataclass(frozen=True, slots=True)
class Build:
    """How ``spin build`` makes the component; of no use to us."""

    command: str
    workdir: str | None
    watch: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One WebAssembly module and what it may do."""

    id: str
    source: FileSource | UrlSource
    trigger: ComponentTrigger
    description: str = ""
    files: tuple[FileEntry, ...] = ()
    exclude_files: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Template] = field(default_factory=dict)
    allowed_http_hosts: tuple[str, ...] = ()
    allowed_outbound_hosts: tuple[str, ...] | None = None
    """None where the manifest does not say: then ``allowed_http_hosts`` counts."""
    key_value_stores: tuple[str, ...] = ()
    sqlite_databases: tuple[str, ...] = ()
    ai_models: tuple[str, ...] = ()
    build: Build | None = None
    where: str = _place()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppManifest:
    """An app."""

    manifest_version: int
    name: str
    version: str
    trigger: AppTrigger
    components: tuple[Component, ...]
    description: str = ""
    authors: tuple[str, ...] = ()
    namespace: str | None = None
    """Deprecated, and without meaning."""
    variables: Mapping[str, Variable] = field(default_factory=dict)
