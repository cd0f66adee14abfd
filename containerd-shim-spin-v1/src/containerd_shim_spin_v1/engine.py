"""The Spin engine: from an image's ``spin.toml`` to an app that serves."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from containerd_shim_spin_v1.component import LinkedComponent
from containerd_shim_spin_v1.component_logs import ComponentLogs
from containerd_shim_spin_v1.files.assets import Assets
from containerd_shim_spin_v1.host.services import Services, ServiceSources
from containerd_shim_spin_v1.http_component import HttpComponent
from containerd_shim_spin_v1.loading import link_components, load_manifest
from containerd_shim_spin_v1.manifest.model import (
    AppManifest,
    CommandTrigger,
    Executor,
    HttpTrigger,
    RedisTrigger,
)
from containerd_shim_spin_v1.manifest.retain import SETTING as RETAIN_SETTING
from containerd_shim_spin_v1.manifest.retain import retain_components
from containerd_shim_spin_v1.message_component import MessageComponent
from containerd_shim_spin_v1.routing.v1 import RouteFinder, Router
from containerd_shim_spin_v1.routing.v2 import PatternRouter
from containerd_shim_spin_v1.runtime_config.labels import check_labels
from containerd_shim_spin_v1.runtime_config.model import RuntimeConfig
from containerd_shim_spin_v1.runtime_config.reader import load_runtime_config
from containerd_shim_spin_v1.settings import MAX_MEMORY_SETTING, Settings
from containerd_shim_spin_v1.triggers.command import CommandRun
from containerd_shim_spin_v1.triggers.http import HttpTrigger as HttpServing
from containerd_shim_spin_v1.triggers.redis import Handler
from containerd_shim_spin_v1.triggers.redis import RedisTrigger as RedisListener
from containerd_shim_spin_v1.triggers.static import StaticResponder
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.errors import ExitCode, ManifestError
from containerd_shimkit.http.deadlines import Deadlines
from containerd_shimkit.http.server import HttpServer, HttpSettings, listen
from containerd_shimkit.redis_client.address import AddressError
from containerd_shimkit.wasm.engine import fit_requests

ROOT: Final = Path("/")

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class SpinApp:
    """An app ready to serve."""

    manifest: AppManifest
    settings: Settings
    sources: ServiceSources
    components: dict[str, LinkedComponent]
    router: RouteFinder
    responders: list[HttpComponent | StaticResponder]
    """What answers, for each route of the router."""
    callable_components: dict[str, HttpComponent]
    """What answers other components, by id in lower case."""
    messages: list[MessageComponent]
    """Those that Redis triggers call."""
    commands: list[CommandRun]
    assets: Assets
    socket: socket.socket | None = None
    """Bound by ``listen``."""


class SpinEngine:
    """See ``containerd_shimkit.engine.Engine``."""

    imports_late: ClassVar[bool] = False

    def prepare(self, context: RuntimeContext) -> SpinApp:
        """Read the manifest, compile and link every component."""
        manifest = load_manifest(ROOT)
        manifest = retain_components(manifest, context.env.get(RETAIN_SETTING, ""))
        _check_triggers(manifest)
        config = load_runtime_config(ROOT, context.env)
        check_labels(manifest, config)
        settings = fitting(_settings(context, config))
        sources = ServiceSources.read(ROOT, context, manifest, config)
        http = _of_type(manifest, HttpTrigger)
        router = make_router(manifest, http)
        for shadowed in router.shadowed:
            log.warning("%s", shadowed)
        called = {trigger.component for trigger in manifest.triggers}
        assets = Assets(context.directories)
        components = link_components(
            ROOT,
            [component for component in manifest.components if component.id in called],
            context,
            settings,
            ComponentLogs(ROOT, config.log_dir),
            assets,
        )
        messages = [
            MessageComponent(components[trigger.component], trigger)
            for trigger in _of_type(manifest, RedisTrigger)
        ]
        commands = [
            CommandRun(components[trigger.component], context.args)
            for trigger in _of_type(manifest, CommandTrigger)
        ]
        responders = _responders(http, components)
        return SpinApp(
            manifest=manifest,
            settings=settings,
            sources=sources,
            components=components,
            router=router,
            responders=[found for found, routed in responders if routed],
            callable_components=_callable(found for found, _ in responders),
            messages=messages,
            commands=commands,
            assets=assets,
        )

    def listen(self, app: SpinApp) -> int:
        """Bind the HTTP trigger's address."""
        if _of_type(app.manifest, HttpTrigger):
            app.socket = listen(app.settings.host, app.settings.port)
        # Only connections come to one worker each; a message would come to all of them.
        return app.settings.workers if _serves_http_only(app.manifest) else 1

    async def serve(self, app: SpinApp, ready: Callable[[], None], stop: asyncio.Event) -> int:
        """Serve until told to stop, then drain."""
        services = await Services.open(app.sources)
        try:
            for component in app.components.values():
                component.use(services)
            return await _run_triggers(app, services, ready, stop)
        finally:
            await services.close()

    def close(self, app: SpinApp) -> None:
        """Remove the copies of files, and let go of what guests ran in."""
        if app.socket is not None:
            app.socket.close()  # the server does, if it ever served
        for component in app.components.values():
            component.ticker.stop()
        app.assets.remove()


def _settings(context: RuntimeContext, config: RuntimeConfig) -> Settings:
    """Return the settings; what the environment says comes before the runtime configuration."""
    settings = Settings.load(context.env, context.memory_limit_bytes, context.processors)
    limit = config.max_instance_memory
    if limit is None or context.env.get(MAX_MEMORY_SETTING):
        return settings
    return replace(settings, max_memory_bytes=min(limit, settings.max_memory_bytes))


def fitting(settings: Settings) -> Settings:
    """Return the settings with no more requests at once than there is address space for."""
    count = fit_requests(settings.max_requests, "SPIN_MAX_INSTANCE_COUNT")
    return replace(settings, max_requests=count)


def _check_triggers(manifest: AppManifest) -> None:
    """Raise ManifestError for triggers that nobody here serves."""
    for trigger in manifest.triggers:
        if not isinstance(trigger, HttpTrigger | RedisTrigger | CommandTrigger):
            raise ManifestError(
                f"{trigger.where} = {trigger.type!r}: the types of triggers that are served are "
                "http, redis and command"
            )
    if not manifest.triggers:
        raise ManifestError(f"app {manifest.name!r} has no trigger: nothing would ever call it")


def _of_type(manifest: AppManifest, kind: type[T]) -> list[T]:
    return [trigger for trigger in manifest.triggers if isinstance(trigger, kind)]


def _serves_http_only(manifest: AppManifest) -> bool:
    return all(isinstance(trigger, HttpTrigger) for trigger in manifest.triggers)


async def _run_triggers(
    app: SpinApp, services: Services, ready: Callable[[], None], stop: asyncio.Event
) -> int:
    """Run all triggers until told to stop, or until the programs have ended if there are any."""
    settings = app.settings
    # Guests at once are limited for the app, not for each of its workers and triggers.
    workers = settings.workers if _serves_http_only(app.manifest) else 1
    places = asyncio.Semaphore(ceil(settings.max_requests / workers))
    serving = []
    if app.messages:
        listening = await _redis_listener(app, services, places)
        serving.append(asyncio.create_task(listening.run(stop)))
    if app.socket is not None:
        serving.append(asyncio.create_task(_serve_http(app, services, places, app.socket, stop)))
    programs = [asyncio.create_task(_run_program(run, places, stop)) for run in app.commands]
    ready()
    if programs:
        await asyncio.wait(programs)
        stop.set()
    await asyncio.gather(*serving)
    codes = [program.result() for program in programs]
    return next((code for code in codes if code), ExitCode.OK)


async def _run_program(run: CommandRun, places: asyncio.Semaphore, stop: asyncio.Event) -> int:
    async with places:
        return await run.run(stop)


async def _redis_listener(
    app: SpinApp, services: Services, places: asyncio.Semaphore
) -> RedisListener:
    """Raises ProviderError for an address without its variables' values, ManifestError."""
    deadlines = Deadlines(app.settings.request_seconds)
    subscriptions: dict[str, list[tuple[str, Handler]]] = {}
    for component in app.messages:
        address = await services.variables.render(component.trigger.address)
        handler = partial(component.handle, deadlines=deadlines)
        subscriptions.setdefault(address, []).append((component.trigger.channel, handler))
    try:
        return RedisListener(
            subscriptions,
            services.tls.default,
            places=places,
            drain_seconds=app.settings.drain_seconds,
        )
    except AddressError as exc:
        raise ManifestError(f"a Redis trigger cannot listen: {exc}") from None


# HTTP


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


def _responders(
    triggers: list[HttpTrigger], components: dict[str, LinkedComponent]
) -> list[tuple[HttpComponent | StaticResponder, bool]]:
    """Return what answers for each trigger, and whether it has a route: private ones have none."""
    made: dict[tuple[str, Executor], HttpComponent] = {}
    found: list[tuple[HttpComponent | StaticResponder, bool]] = []
    for trigger in triggers:
        responder: HttpComponent | StaticResponder
        if trigger.static_response is not None:
            responder = StaticResponder.of(trigger, trigger.static_response)
        else:
            assert trigger.component is not None, "the manifest's reader sees to it"
            key = (trigger.component, trigger.executor)
            if key not in made:
                made[key] = HttpComponent(components[trigger.component], trigger.executor)
            responder = made[key]
        found.append((responder, trigger.route is not None))
    return found


def _callable(responders: Iterable[HttpComponent | StaticResponder]) -> dict[str, HttpComponent]:
    """Return what answers other components; of several triggers of a component the first."""
    found: dict[str, HttpComponent] = {}
    for responder in responders:
        if isinstance(responder, HttpComponent):
            found.setdefault(responder.id.lower(), responder)
    return found


async def _serve_http(
    app: SpinApp,
    services: Services,
    places: asyncio.Semaphore,
    sock: socket.socket,
    stop: asyncio.Event,
) -> None:
    settings = app.settings
    trigger = HttpServing(
        app.manifest.name,
        app.manifest.version,
        app.router,
        app.responders,
        app.callable_components,
        settings,
        places,
    )
    services.http.use_chain(trigger.answer_chained)
    server = HttpServer(
        trigger,
        HttpSettings(drain_seconds=settings.drain_seconds, take_turns=settings.workers > 1),
    )
    await server.serve(sock, stop)
