"""The wws engine: from an image's files to workers that answer requests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import ClassVar, Final

from containerd_shim_wws_v1.http.trigger import HttpTrigger
from containerd_shim_wws_v1.kv.stores import MEMORY, MakeStore, choose_store
from containerd_shim_wws_v1.loading import Project, load_project
from containerd_shim_wws_v1.outbound.http import OutboundHttp
from containerd_shim_wws_v1.services import Services
from containerd_shim_wws_v1.settings import Settings
from containerd_shim_wws_v1.workers.loader import LOADING_INSTANCES, Loader
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.errors import ExitCode, ListenError
from containerd_shimkit.http.server import HttpServer, HttpSettings, listen
from containerd_shimkit.tls import TrustedCertificates
from containerd_shimkit.wasm.engine import fit_requests

ROOT: Final = Path("/")
_LOADING_SECONDS: Final = 5.0  # before it serves; kubelet gives a start two minutes


@dataclass(slots=True)
class WwsApp:
    """An app ready to run."""

    settings: Settings
    project: Project
    make_store: MakeStore
    certificates: TrustedCertificates
    socket: socket.socket | None = None
    processes: int = 1
    """How many serve."""


class WwsEngine:
    """See ``containerd_shimkit.engine.Engine``."""

    # Not for modules: the engines of languages are files beside this one.
    imports_late: ClassVar[bool] = True

    def prepare(self, context: RuntimeContext) -> WwsApp:
        """Find the workers, compile and link what runs them."""
        settings = _fitting(
            Settings.load(context.env, context.memory_limit_bytes, context.processors)
        )
        certificates = TrustedCertificates(context.env, ca_bundle=context.ca_bundle)
        make_store = choose_store(settings.kv, certificates)
        project = load_project(ROOT, context, settings)
        return WwsApp(settings, project, make_store, certificates)

    def listen(self, app: WwsApp) -> int:
        """Bind the address. One process serves where workers keep values in its memory."""
        settings = app.settings
        app.socket = listen(settings.host, settings.port)
        keeps = any(w.identity.config.namespace is not None for w in app.project.workers.values())
        app.processes = 1 if settings.kv == MEMORY and keeps else settings.processes
        return app.processes

    async def serve(self, app: WwsApp, ready: Callable[[], None], stop: asyncio.Event) -> int:
        """Get the workers ready, serve until told to stop, then drain.

        Those that are not ready in time are got ready while others answer.
        """
        if app.socket is None:
            raise ListenError("the address is not bound")
        settings, project = app.settings, app.project
        services = Services(app.make_store(), OutboundHttp(app.certificates))
        loader = Loader(project.workers.values(), services, settings.request_seconds)
        loading = asyncio.create_task(_load(loader, project))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait(
                (loading, stopping), timeout=_LOADING_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if stop.is_set():
                app.socket.close()
                return ExitCode.OK
            places = ceil(settings.max_requests / app.processes)
            trigger = HttpTrigger(project, loader, services, settings, places)
            limits = HttpSettings(
                drain_seconds=settings.drain_seconds, take_turns=app.processes > 1
            )
            server = asyncio.create_task(HttpServer(trigger, limits).serve(app.socket, stop))
            await asyncio.sleep(0)  # it has taken its socket over
            ready()
            await server
        finally:
            loading.cancel()
            stopping.cancel()
            await asyncio.wait((loading, stopping))
            await loader.close()
            await services.close()
        return ExitCode.OK

    def close(self, app: WwsApp) -> None:
        """Let go of what guests ran in."""
        app.project.close()


async def _load(loader: Loader, project: Project) -> None:
    await loader.load_all()
    project.pages.forget()


def _fitting(settings: Settings) -> Settings:
    count = fit_requests(settings.max_requests, "WWS_MAX_INSTANCE_COUNT", others=LOADING_INSTANCES)
    return replace(settings, max_requests=count)
