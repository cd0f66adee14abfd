"""What an app's manifest says, whichever version of the format it was written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from containerd_shim_spin_v1.manifest.templates import Template

WAGI_ENTRYPOINT = "_start"
WAGI_ARGV = "${SCRIPT_NAME} ${ARGS}"

HostsField: TypeAlias = Literal["allowed_http_hosts", "allowed_outbound_hosts"]


def _place() -> str:
    """``file:line:column: name`` of an entry, for errors found later; no part of its value."""
    return field(default="", compare=False, repr=False)


# Triggers


@dataclass(frozen=True, slots=True)
class Executor:
    """How a component is called."""

    type: Literal["spin", "wagi"] = "spin"
    entrypoint: str = WAGI_ENTRYPOINT
    """Function to call; ``wagi`` only, as ``argv``."""
    argv: str = WAGI_ARGV
    """Arguments separated by single spaces, with two placeholders."""


@dataclass(frozen=True, slots=True)
class StaticResponse:
    """An answer that no component gives."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTrigger:
    """A route and what answers its requests."""

    type: ClassVar[str] = "http"
    id: str
    component: str | None
    """None with a static response."""
    route: str | None
    """None is a private endpoint: only other components of the app reach it."""
    executor: Executor = Executor()
    static_response: StaticResponse | None = None
    where: str = _place()


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisTrigger:
    """A channel, and the component called for its messages."""

    type: ClassVar[str] = "redis"
    id: str
    component: str
    channel: str
    address: Template
    """Of the server; the app's where the trigger says none."""
    where: str = _place()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandTrigger:
    """A component that runs once."""

    type: ClassVar[str] = "command"
    id: str
    component: str
    where: str = _place()


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherTrigger:
    """A trigger this shim knows nothing of; its settings are unchecked."""

    type: str
    id: str
    component: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    where: str = _place()


Trigger: TypeAlias = HttpTrigger | RedisTrigger | CommandTrigger | OtherTrigger


# Components


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
class RegistrySource:
    """A package of a registry."""

    package: str
    """``namespace:name``."""
    version: str
    registry: str | None
    """None is the default one."""


@dataclass(frozen=True, slots=True)
class Content:
    """Content that a locked app refers to: a layer of its artifact, or the bytes themselves."""

    digest: str | None
    """``sha256:`` and lower-case hex; may be None only if ``inline`` is given."""
    inline: bytes | None = None


Source: TypeAlias = FileSource | UrlSource | RegistrySource | Content


@dataclass(frozen=True, slots=True)
class FileGlob:
    """Files the guest sees at the path they have below the manifest's directory."""

    pattern: str
    where: str = _place()


@dataclass(frozen=True, slots=True)
class FilePlacement:
    """A directory or a file the guest sees at another path."""

    source: str
    """Relative to the manifest's directory."""
    destination: str
    """Absolute path in the guest."""
    where: str = _place()


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file of a locked app whose content is not in the image's filesystem."""

    content: Content
    destination: str
    """Absolute path in the guest."""
    where: str = _place()


FileEntry: TypeAlias = FileGlob | FilePlacement | FileContent


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of the app; exactly one of ``required`` and a default is given."""

    required: bool
    default: str | None
    secret: bool
    description: str = ""


@dataclass(frozen=True, slots=True)
class Build:
    """How ``spin build`` makes the component; of no use to us."""

    commands: tuple[str, ...]
    workdir: str | None
    watch: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One WebAssembly module and what it may do."""

    id: str
    source: Source
    description: str = ""
    files: tuple[FileEntry, ...] = ()
    exclude_files: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, Template] = field(default_factory=dict)
    """What the component may ask for; ``config`` in version 1."""
    allowed_outbound_hosts: tuple[Template, ...] = ()
    """See allowed_hosts.py. ``allowed_http_hosts`` are among them, as that form writes them."""
    hosts_field: HostsField = "allowed_outbound_hosts"
    """Where an entry for one more HTTP host belongs in this manifest."""
    key_value_stores: tuple[str, ...] = ()
    sqlite_databases: tuple[str, ...] = ()
    ai_models: tuple[str, ...] = ()
    build: Build | None = None
    where: str = _place()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppManifest:
    """An app."""

    manifest_version: int
    """1 or 2: the version decides by which rules requests are routed."""
    name: str
    version: str | None
    """None where the manifest does not say."""
    triggers: tuple[Trigger, ...]
    components: tuple[Component, ...]
    description: str = ""
    authors: tuple[str, ...] = ()
    namespace: str | None = None
    """Deprecated, and without meaning."""
    http_base: str = "/"
    """Prefix of every route; ``/`` or empty for none."""
    trigger_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The app's settings for types this shim knows nothing of, by type."""
    variables: Mapping[str, Variable] = field(default_factory=dict)

    def component(self, component_id: str) -> Component:
        """Return a component; raises KeyError for an id that no component has."""
        for component in self.components:
            if component.id == component_id:
                return component
        raise KeyError(component_id)
