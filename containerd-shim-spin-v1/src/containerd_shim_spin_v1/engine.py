"""The Spin engine: from an image's ``spin.toml`` to an app that serves."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Final

import wasmtime

from containerd_shim_spin_v1.component import Host, HttpComponent
from containerd_shim_spin_v1.files.assets import Assets
from containerd_shim_spin_v1.files.plan import plan_files
from containerd_shim_spin_v1.manifest.model import (
    AppManifest,
    Component,
    Content,
    Executor,
    FileSource,
    HttpTrigger,
    RegistrySource,
)
from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.manifest.retain import SETTING as RETAIN_SETTING
from containerd_shim_spin_v1.manifest.retain import retain_components
from containerd_shim_spin_v1.routing.v1 import RouteFinder, Router
from containerd_shim_spin_v1.routing.v2 import PatternRouter
from containerd_shim_spin_v1.runtime_config.model import RuntimeConfig
from containerd_shim_spin_v1.runtime_config.reader import load_runtime_config
from containerd_shim_spin_v1.settings import MAX_MEMORY_SETTING, Settings
from containerd_shim_spin_v1.sources.image_files import read_text
from containerd_shim_spin_v1.triggers.http import HttpTrigger as HttpServing
from containerd_shim_spin_v1.triggers.static import StaticResponder
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.errors import ManifestError, MissingFileError
from containerd_shimkit.http.server import HttpServer, HttpSettings, listen
from containerd_shimkit.wasm.engine import EngineSettings, create_engine, fit_instances
from containerd_shimkit.wasm.module import load_compiled, open_wasm
from containerd_shimkit.wasm.preview1 import WasiTemplate

ROOT: Final = Path("/")
MANIFESTS: Final = ("spin.toml", "spin.json", "spin.lock")
"""The first that is there describes the app; the others are its locked form."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class HttpApp:
    """An app with HTTP triggers, ready to serve."""

    manifest: AppManifest
    settings: Settings
    router: RouteFinder
    components: list[HttpComponent | StaticResponder]
    """What answers, for each route of the router."""
    assets: Assets
    socket: socket.socket | None = None
    """Bound by ``listen``."""


class SpinEngine:
    """See ``containerd_shimkit.engine.Engine``."""

    def prepare(self, context: RuntimeContext) -> HttpApp:
        """Read the manifest, compile and link every component."""
        manifest = load_manifest(ROOT)
        manifest = retain_components(manifest, context.env.get(RETAIN_SETTING, ""))
        triggers = _http_triggers(manifest)
        settings = fitting(_settings(context, load_runtime_config(ROOT, context.env)))
        router = make_router(manifest, triggers)
        for shadowed in router.shadowed:
            log.warning("%s", shadowed)
        ids = {trigger.component for trigger in triggers}
        called = {
            component.id: component for component in manifest.components if component.id in ids
        }
        compiled = {id_: _compile(component, context) for id_, component in called.items()}
        engine = create_engine(EngineSettings(max_instances=settings.max_requests))
        assets = Assets()
        try:
            linker = _Linker(Host.create(engine), context, settings, assets, compiled)
            linked = {
                trigger.id: linker.link(called[trigger.component], trigger.executor)
                for trigger in triggers
                if trigger.component is not None
            }
        finally:
            for descriptor in compiled.values():
                os.close(descriptor)
        components = [_responder(trigger, linked) for trigger in _routed(triggers)]
        return HttpApp(manifest, settings, router, components, assets)

    def listen(self, app: HttpApp) -> int:
        """Bind the HTTP trigger's address."""
        app.socket = listen(app.settings.host, app.settings.port)
        return app.settings.workers

    async def serve(self, app: HttpApp, ready: Callable[[], None], stop: asyncio.Event) -> int:
        """Serve HTTP until told to stop, then drain."""
        assert app.socket is not None, "listen comes first"
        settings = app.settings
        # Requests in flight are limited for the app, not for each of its workers.
        share = replace(settings, max_requests=ceil(settings.max_requests / settings.workers))
        trigger = HttpServing(
            app.manifest.name, app.manifest.version, app.router, app.components, share
        )
        server = HttpServer(
            trigger,
            HttpSettings(drain_seconds=settings.drain_seconds, take_turns=settings.workers > 1),
        )
        serving = asyncio.create_task(server.serve(app.socket, stop))
        ready()
        await serving
        return 0

    def close(self, app: HttpApp) -> None:
        """Remove the copies of files."""
        app.assets.remove()


def load_manifest(root: Path) -> AppManifest:
    """Return the manifest of the image at ``root``. Raises ManifestError, MissingFileError."""
    for name in MANIFESTS:
        text = read_text(root / name, f"/{name}")
        if text is not None:
            return parse_manifest(text, f"/{name}")
    raise MissingFileError(
        f"/{MANIFESTS[0]}: no such file in the image: a Spin image holds it beside its .wasm files"
    )


def _settings(context: RuntimeContext, config: RuntimeConfig) -> Settings:
    """Return the settings; what the environment says comes before the runtime configuration."""
    settings = Settings.load(context.env, context.memory_limit_bytes, context.processors)
    limit = config.max_instance_memory
    if limit is None or context.env.get(MAX_MEMORY_SETTING):
        return settings
    return replace(settings, max_memory_bytes=min(limit, settings.max_memory_bytes))


def fitting(settings: Settings) -> Settings:
    """Return the settings with no more requests at once than there is address space for."""
    wanted = settings.max_requests
    fit = max(fit_instances(wanted), 1)  # none at all is an error, which create_engine raises
    if fit < wanted:
        log.warning(
            "at most %d requests at once, not %d (SPIN_MAX_INSTANCE_COUNT):"
            " the address space has no room for more",
            fit,
            wanted,
        )
    return replace(settings, max_requests=fit)


def _http_triggers(manifest: AppManifest) -> list[HttpTrigger]:
    """Return the app's triggers, all of which must be HTTP triggers."""
    found = []
    for trigger in manifest.triggers:
        if not isinstance(trigger, HttpTrigger):
            raise ManifestError(
                f'{trigger.where} = {trigger.type!r}: only trigger type "http" is served yet'
            )
        found.append(trigger)
    if not found:
        raise ManifestError(f"app {manifest.name!r} has no trigger: nothing would ever call it")
    return found


def _routed(triggers: list[HttpTrigger]) -> list[HttpTrigger]:
    """Return the triggers that requests from outside reach."""
    return [trigger for trigger in triggers if trigger.route is not None]


def make_router(manifest: AppManifest, triggers: list[HttpTrigger]) -> RouteFinder:
    """Return the router of the manifest's version."""
    routes = [
        (trigger.component or trigger.id, trigger.route or "") for trigger in _routed(triggers)
    ]
    kind = Router if manifest.manifest_version == 1 else PatternRouter
    return kind(manifest.http_base, routes)


def _responder(
    trigger: HttpTrigger, linked: dict[str, HttpComponent]
) -> HttpComponent | StaticResponder:
    if trigger.static_response is not None:
        return StaticResponder.of(trigger, trigger.static_response)
    return linked[trigger.id]


def _compile(component: Component, context: RuntimeContext) -> int:
    """Return a descriptor of the component's compiled module."""
    match component.source:
        case FileSource(path):
            name = _name(component)
            wasm = open_wasm(ROOT / path, name)
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


def _name(component: Component) -> str:
    """Return what messages call the component's module."""
    path = component.source.path if isinstance(component.source, FileSource) else "?"
    return f"component {component.id!r}: {path}"


class _Linker:
    """Makes components ready to serve, each once for each executor that triggers call it by."""

    def __init__(
        self,
        host: Host,
        context: RuntimeContext,
        settings: Settings,
        assets: Assets,
        compiled: dict[str, int],
    ) -> None:
        """compiled: descriptors by component id; the caller's to close."""
        self._host = host
        self._context = context
        self._settings = settings
        self._assets = assets
        self._compiled = compiled
        self._linked: dict[tuple[str, Executor], HttpComponent] = {}
        self._loaded: dict[str, tuple[wasmtime.Module, WasiTemplate]] = {}

    def link(self, component: Component, executor: Executor) -> HttpComponent:
        """Return the component, made at the first call."""
        key = (component.id, executor)
        if key not in self._linked:
            name = _name(component)
            if component.id not in self._loaded:
                self._loaded[component.id] = self._load(component, name)
            module, wasi = self._loaded[component.id]
            self._linked[key] = HttpComponent.link(
                self._host,
                component.id,
                module,
                executor,
                wasi,
                name=name,
                max_memory_bytes=self._settings.max_memory_bytes,
                stdout=self._context.stdout,
                stderr=self._context.stderr,
            )
        return self._linked[key]

    def _load(self, component: Component, name: str) -> tuple[wasmtime.Module, WasiTemplate]:
        module = load_compiled(self._host.engine, self._compiled[component.id], name)
        plan = plan_files(component, ROOT)
        for pattern in plan.unmatched:
            log.warning("component %r: files: %r matches nothing", component.id, pattern)
        wasi = WasiTemplate(
            environment=list(component.environment.items()),
            directories=self._assets.place(component.id, plan),
        )
        return module, wasi
