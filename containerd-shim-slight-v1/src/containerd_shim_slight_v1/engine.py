"""The Slight engine: from an image's ``slightfile.toml`` and ``app.wasm`` to an app that serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final

from containerd_shim_slight_v1.abi.exports import (
    INIT,
    INIT_TYPE,
    MEMORY,
    START,
    InitFailedError,
    call_init,
)
from containerd_shim_slight_v1.app import LinkedApp
from containerd_shim_slight_v1.capabilities.backends import BackendClasses, load_backends
from containerd_shim_slight_v1.capabilities.context import AppContext
from containerd_shim_slight_v1.capabilities.services import Services
from containerd_shim_slight_v1.http.servers import Servers
from containerd_shim_slight_v1.http.trigger import HttpTrigger, Places
from containerd_shim_slight_v1.loading import load_app, load_slightfile
from containerd_shim_slight_v1.settings import Settings
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.errors import EngineError, ExitCode, ModuleError
from containerd_shimkit.http.server import HttpServer, HttpSettings
from containerd_shimkit.wasm.engine import fit_requests
from containerd_shimkit.wasm.exports import export_fault
from containerd_shimkit.wasm.native import GuestError, GuestExit
from containerd_shimkit.wasm.program import STOPPED, TRAPPED, run_until

ROOT: Final = Path("/")

log = logging.getLogger(__name__)


class SetupError(EngineError):
    """The guest did not set the app up."""

    exit_code = ExitCode.UNAVAILABLE


@dataclass(slots=True)
class SlightApp:
    """An app ready to run."""

    context: AppContext
    backends: BackendClasses
    settings: Settings
    linked: LinkedApp
    entry: str
    """What runs first: INIT or START."""


class SlightEngine:
    """See ``containerd_shimkit.engine.Engine``."""

    imports_late: ClassVar[bool] = True

    def prepare(self, context: RuntimeContext) -> SlightApp:
        """Read the slightfile, compile and link the module."""
        slightfile = load_slightfile(ROOT)
        for warning in slightfile.warnings:
            log.warning("%s", warning)
        backends = load_backends(slightfile)
        settings = _fitting(Settings.load(context.env, context.memory_limit_bytes))
        linked = load_app(ROOT, context, settings)
        entry = _entry(linked, slightfile.serves_http)
        app = AppContext(slightfile, dict(context.env), context.ca_bundle)
        return SlightApp(app, backends, settings, linked, entry)

    def listen(self, app: SlightApp) -> int:
        """Bind nothing: the guest says where, when it runs."""
        return 1

    async def serve(self, app: SlightApp, ready: Callable[[], None], stop: asyncio.Event) -> int:
        """Let the guest set the app up, serve until told to stop, then drain; or run a program."""
        services = Services(app.context, app.backends)
        servers = Servers(app.settings.address)
        try:
            if app.entry == INIT:
                await _set_up(app, services, servers)
            else:
                code = await _run_program(app, services, servers, ready, stop)
                if code or stop.is_set() or not servers.running:
                    return code
            await _serve_http(app, services, servers, ready, stop)
        finally:
            servers.close()
            await services.close()
        return ExitCode.OK

    def close(self, app: SlightApp) -> None:
        """Let go of what guests ran in; ``prepare`` makes no files."""
        app.linked.ticker.stop()


def _fitting(settings: Settings) -> Settings:
    # One more instance: the guest that gets the app ready takes no place of a request.
    count = fit_requests(settings.max_requests, "SLIGHT_MAX_INSTANCE_COUNT", others=1)
    return replace(settings, max_requests=count)


def _entry(linked: LinkedApp, serves_http: bool) -> str:
    """Return what runs first. Apps made for SpiderLightning 0.1 to 0.3 serve from ``_start``.

    Raises ModuleError.
    """
    if serves_http:
        linked.check_allocator()
        fault = export_fault(linked.exports, INIT, INIT_TYPE)
        if fault is None:
            return INIT
        if linked.exports.get(START) is None:
            raise ModuleError(f"{linked.name}: {fault}, which a slightfile with http asks for")
    if (fault := export_fault(linked.exports, START, ((), ()))) is not None:
        hint = "" if serves_http else ' (a server wants resource = "http" in slightfile.toml)'
        raise ModuleError(f"{linked.name}: {fault}{hint}")
    return START


async def _set_up(app: SlightApp, services: Services, servers: Servers) -> None:
    """Call the guest that starts servers. Raises SetupError."""
    try:
        async with asyncio.timeout(app.settings.request_seconds):
            async with app.linked.start(services, servers) as guest:
                await call_init(guest)
    except InitFailedError as exc:
        raise SetupError(f"{app.linked.name}: {INIT} returned an error: {exc}") from None
    except GuestError as exc:
        raise SetupError(f"{app.linked.name}: {INIT} failed: {exc}") from None
    except TimeoutError:
        seconds = app.settings.request_seconds
        raise SetupError(f"{app.linked.name}: {INIT} took more than {seconds:g} s") from None
    if not servers.running:
        raise SetupError(f"{app.linked.name}: {INIT} has started no server")


async def _run_program(
    app: SlightApp,
    services: Services,
    servers: Servers,
    ready: Callable[[], None],
    stop: asyncio.Event,
) -> int:
    """Return the exit code of the program, which ends at the latest when ``stop`` is set.

    servers: those it starts, if the slightfile has the resource for it.
    """
    serves_http = app.context.slightfile.serves_http
    program = _call_start(app, services, servers if serves_http else None)
    if not serves_http:
        ready()
    code = await run_until(stop, program)
    if code is None:
        log.warning("%s is cut off: the app stops", app.linked.name)
        return STOPPED
    return code


async def _call_start(app: SlightApp, services: Services, servers: Servers | None) -> int:
    try:
        async with app.linked.start(services, servers) as guest:
            guest.use_memory(guest.export(MEMORY))
            await guest.call(guest.export(START.encode()), results=0)
    except GuestExit as exc:
        return exc.status & 0xFF
    except GuestError as exc:
        log.error("%s failed: %s", app.linked.name, exc)
        return TRAPPED
    return 0


async def _serve_http(
    app: SlightApp,
    services: Services,
    servers: Servers,
    ready: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    places = Places(app.settings.max_requests)
    limits = HttpSettings(drain_seconds=app.settings.drain_seconds)
    serving = []
    while servers.running:
        server = servers.running.pop(0)
        trigger = HttpTrigger(app.linked, services, server.router, app.settings, places)
        serving.append(HttpServer(trigger, limits).serve(server.socket, stop))
    tasks = [asyncio.create_task(each) for each in serving]
    await asyncio.sleep(0)  # each has taken its socket over
    ready()
    await asyncio.gather(*tasks)
