"""Reading ``spin.toml``: which version of the format it is in decides who parses it."""

from __future__ import annotations

from containerd_shim_spin_v1.manifest_model import (
    AppManifest,
    AppTrigger,
    Build,
    Component,
    ComponentTrigger,
    Executor,
    FileEntry,
    FileGlob,
    FilePlacement,
    FileSource,
    HttpComponentTrigger,
    HttpTrigger,
    PluginComponentTrigger,
    PluginTrigger,
    RedisComponentTrigger,
    RedisTrigger,
    UrlSource,
    Variable,
)
from containerd_shim_spin_v1.manifest_v1 import parse_v1
from containerd_shim_spin_v1.toml_source import load_toml
from containerd_shimkit.errors import ManifestError

__all__ = [
    "AppManifest",
    "AppTrigger",
    "Build",
    "Component",
    "ComponentTrigger",
    "Executor",
    "FileEntry",
    "FileGlob",
    "FilePlacement",
    "FileSource",
    "HttpComponentTrigger",
    "HttpTrigger",
    "PluginComponentTrigger",
    "PluginTrigger",
    "RedisComponentTrigger",
    "RedisTrigger",
    "UrlSource",
    "Variable",
    "parse_manifest",
]


def parse_manifest(text: str, file: str = "spin.toml") -> AppManifest:
    """Parse a manifest; ``file`` is only its name in messages.

    Raises ManifestError with a line ``file:line:column: field = value: rule`` for each fault.
    """
    source = load_toml(text, file)
    version = source.data.get("spin_manifest_version")
    if version == 2:
        raise ManifestError(
            f"{source.where(('spin_manifest_version',))}: spin_manifest_version = 2: manifest "
            'version 2 is not supported yet, only version 1 (spin_manifest_version = "1")'
        )
    return parse_v1(source)
