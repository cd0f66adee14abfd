"""From an image's files to its manifest and to components ready to be called."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from containerd_shim_spin_v1.component import Host, LinkedComponent
from containerd_shim_spin_v1.component_logs import ComponentLogs
from containerd_shim_spin_v1.files.assets import Assets
from containerd_shim_spin_v1.files.plan import plan_files
from containerd_shim_spin_v1.manifest.model import (
    AppManifest,
    Component,
    Content,
    FileSource,
    RegistrySource,
)
from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.settings import Settings
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.errors import ManifestError, MissingFileError
from containerd_shimkit.text.image_files import read_text
from containerd_shimkit.wasm.engine import EngineSettings, create_engine
from containerd_shimkit.wasm.module import load_compiled, open_wasm
from containerd_shimkit.wasm.preview1 import WasiTemplate

MANIFESTS: Final = ("spin.toml", "spin.json", "spin.lock")
"""The first that is there describes the app; the others are its locked form."""

log = logging.getLogger(__name__)


def load_manifest(root: Path) -> AppManifest:
    """Return the manifest of the image at ``root``. Raises ManifestError, MissingFileError."""
    for name in MANIFESTS:
        text = read_text(root / name, f"/{name}")
        if text is not None:
            return parse_manifest(text, f"/{name}")
    raise MissingFileError(
        f"/{MANIFESTS[0]}: no such file in the image: a Spin image holds it beside its .wasm files"
    )


def link_components(
    root: Path,
    components: Iterable[Component],
    context: RuntimeContext,
    settings: Settings,
    logs: ComponentLogs,
    assets: Assets,
) -> dict[str, LinkedComponent]:
    """Return components ready to be called, by their ids.

    assets: gets the copies of their files.  Raises ShimError.
    """
    components = tuple(components)
    compiled = {component.id: _compile(root, component, context) for component in components}
    try:
        host = Host.create(create_engine(EngineSettings(max_instances=settings.max_requests)))
        return {
            component.id: LinkedComponent.link(
                host,
                component,
                load_compiled(host.engine, compiled[component.id], _name(component)),
                _wasi(root, component, assets),
                name=_name(component),
                max_memory_bytes=settings.max_memory_bytes,
                stdout=logs.output(component.id, "stdout", context.stdout),
                stderr=logs.output(component.id, "stderr", context.stderr),
            )
            for component in components
        }
    finally:
        for descriptor in compiled.values():
            os.close(descriptor)


def _name(component: Component) -> str:
    """Return what messages call the component's module."""
    path = component.source.path if isinstance(component.source, FileSource) else "?"
    return f"component {component.id!r}: {path}"


def _compile(root: Path, component: Component, context: RuntimeContext) -> int:
    """Return a descriptor of the component's compiled module."""
    match component.source:
        case FileSource(path):
            name = _name(component)
            wasm = open_wasm(root / path, name)
        case Content():
            raise ManifestError(
                f"{component.where}: source is in the locked app or a layer of an artifact, not in "
                "the image's files, which is not served yet"
            )
        case source:
            kind = "a package of a registry" if isinstance(source, RegistrySource) else "a URL"
            raise ManifestError(
                f"{component.where}: source is {kind}: an image holds its .wasm files itself"
            )
    try:
        return context.compile(wasm, name)
    finally:
        os.close(wasm)


def _wasi(root: Path, component: Component, assets: Assets) -> WasiTemplate:
    plan = plan_files(component, root)
    for pattern in plan.unmatched:
        log.warning("component %r: files: %r matches nothing", component.id, pattern)
    return WasiTemplate(
        environment=list(component.environment.items()),
        directories=assets.place(component.id, plan),
    )
