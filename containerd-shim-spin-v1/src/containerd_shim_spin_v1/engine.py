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

from containerd_shim_spin_v1.assets import Assets
from containerd_shim_spin_v1.component import Host, HttpComponent
from containerd_shim_spin_v1.files import plan_files
from containerd_shim_spin_v1.manifest import parse_manifest
from containerd_shim_spin_v1.manifest_model import (
    AppManifest,
    Component,
    FileSource,
    HttpComponentTrigger,
    HttpTrigger,
)
from containerd_shim_spin_v1.routes import Router
from containerd_shim_spin_v1.settings import Settings
from containerd_shim_spin_v1.triggers.http import HttpTrigger as HttpServing
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.errors import ManifestError, MissingFileError
from containerd_shimkit.http.server import HttpServer, HttpSettings, listen
from containerd_shimkit.wasm.engine import EngineSettings, create_engine, fit_instances
from containerd_shimkit.wasm.module import load_compiled, open_wasm
from containerd_shimkit.wasm.preview1 import WasiTemplate

ROOT: Final = Path("/")
MANIFEST: Final = "spin.toml"
_MAX_MANIFEST_BYTES: Final = 1 << 20

log = logging.getLogger(__name__)


@dataclass(slots=True)
class HttpApp:
    """An app with an HTTP trigger, ready to serve."""

    manifest: AppManifest
    settings: Settings
    router: Router
    components: dict[str, HttpComponent]
    assets: Assets
    socket: socket.socket | None = None
    """Bound by ``listen``."""


class SpinEngine:
    """See ``containerd_shimkit.engine.Engine``."""

    def prepare(self, context: RuntimeContext) -> HttpApp:
        """Read the manifest, compile and link every component."""
        manifest = load_manifest(ROOT)
        base = _http_base(manifest)
        settings = fitting(
            Settings.load(context.env, context.memory_limit_bytes, context.processors)
        )
        router = Router(base, _routes(manifest))
        for shadowed in router.shadowed:
            log.warning("%s", shadowed)
        compiled = {component.id: _compile(component, context) for component in manifest.components}
        engine = create_engine(EngineSettings(max_instances=settings.max_requests))
        host = Host.create(engine)
        assets = Assets()
        components = {
            component.id: _link(host, component, compiled[component.id], context, settings, assets)
            for component in manifest.components
        }
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
    path = root / MANIFEST
    try:
        # O_NONBLOCK: what is called spin.toml in an image may be a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            data = file.read(_MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as exc:
        raise MissingFileError(
            f"/{MANIFEST}: no such file in the image: a Spin image holds it beside its .wasm files"
        ) from exc
    except OSError as exc:
        raise ManifestError(f"/{MANIFEST}: cannot be read: {exc.strerror}") from exc
    if len(data) > _MAX_MANIFEST_BYTES:
        raise ManifestError(f"/{MANIFEST}: larger than {_MAX_MANIFEST_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise ManifestError(f"/{MANIFEST}: not UTF-8: byte {exc.start}") from exc
    return parse_manifest(text, f"/{MANIFEST}")


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


def _http_base(manifest: AppManifest) -> str:
    trigger = manifest.trigger
    if not isinstance(trigger, HttpTrigger):
        kind = getattr(trigger, "type", None) or "redis"
        raise ManifestError(f'{trigger.where} = {kind!r}: only trigger type "http" is served yet')
    return trigger.base


def _routes(manifest: AppManifest) -> list[tuple[str, str]]:
    return [
        (component.id, component.trigger.route)
        for component in manifest.components
        if isinstance(component.trigger, HttpComponentTrigger)
    ]


def _compile(component: Component, context: RuntimeContext) -> int:
    """Return a descriptor of the component's compiled module."""
    if not isinstance(component.source, FileSource):
        raise ManifestError(
            f"{component.where}: source is a URL: an image holds its .wasm files itself"
        )
    name = _name(component)
    wasm = open_wasm(ROOT / component.source.path, name)
    try:
        return context.compile(wasm, name)
    finally:
        os.close(wasm)


def _name(component: Component) -> str:
    """Return what messages call the component's module."""
    path = component.source.path if isinstance(component.source, FileSource) else "?"
    return f"component {component.id!r}: {path}"


def _link(
    host: Host,
    component: Component,
    compiled: int,
    context: RuntimeContext,
    settings: Settings,
    assets: Assets,
) -> HttpComponent:
    """Make the component ready to serve; closes ``compiled``."""
    name, trigger = _name(component), component.trigger
    try:
        module = load_compiled(host.engine, compiled, name)
    finally:
        os.close(compiled)
    if not isinstance(trigger, HttpComponentTrigger):
        raise ManifestError(f"{component.where}: its trigger is not of the app's type, http")
    plan = plan_files(component, ROOT)
    for pattern in plan.unmatched:
        log.warning("component %r: files: %r matches nothing", component.id, pattern)
    wasi = WasiTemplate(
        environment=list(component.environment.items()),
        directories=assets.place(component.id, plan),
    )
    return HttpComponent.link(
        host,
        component.id,
        module,
        trigger.executor,
        wasi,
        name=name,
        max_memory_bytes=settings.max_memory_bytes,
        stdout=context.stdout,
        stderr=context.stderr,
    )
