"""Reading what describes an app: which version of which format it is decides who parses it."""

from __future__ import annotations

from containerd_shim_spin_v1.manifest.locked import parse_locked
from containerd_shim_spin_v1.manifest.model import AppManifest
from containerd_shim_spin_v1.manifest.v1 import parse_v1
from containerd_shim_spin_v1.manifest.v2 import parse_v2
from containerd_shimkit.text.json_source import load_json
from containerd_shimkit.text.toml_source import load_toml

LOCKED_SUFFIXES = (".json", ".lock")


def parse_manifest(text: str, file: str = "spin.toml") -> AppManifest:
    """Parse a manifest, or the locked form if ``file`` ends in ``.json`` or ``.lock``.

    file: otherwise it is only the name in messages.
    Raises ManifestError with a line ``file:line:column: field = value: rule`` for each fault.
    """
    if file.endswith(LOCKED_SUFFIXES):
        return parse_locked(load_json(text, file))
    source = load_toml(text, file)
    version = source.data.get("spin_manifest_version")
    if type(version) is int and version == 2:
        return parse_v2(source)
    return parse_v1(source)
