"""From a project's files to workers that can be called."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from containerd_shim_wws_v1.project.assets import Assets
from containerd_shim_wws_v1.project.files import (
    ProjectFiles,
    extension_of,
    shown,
    without_extension,
)
from containerd_shim_wws_v1.project.routes import Route, RouteTable
from containerd_shim_wws_v1.project.runtimes import BUILT_IN, Runtimes, load_runtimes
from containerd_shim_wws_v1.project.worker_config import (
    Folder,
    UnsupportedFeatureError,
    WorkerConfig,
    parse_worker_config,
)
from containerd_shim_wws_v1.settings import Settings
from containerd_shim_wws_v1.snapshot import SnapshotPages
from containerd_shim_wws_v1.workers.base import Identity, Worker
from containerd_shim_wws_v1.workers.command import CommandWorker
from containerd_shim_wws_v1.workers.engines import LANGUAGES, NoEngineError, open_engine
from containerd_shim_wws_v1.workers.external import SOURCES, ExternalSources
from containerd_shim_wws_v1.workers.language import LanguageEngine, LanguageWorker
from containerd_shim_wws_v1.workers.linked import Host, LinkedModule
from containerd_shim_wws_v1.workers.loader import LOADING_INSTANCES
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.errors import ManifestError, MissingFileError
from containerd_shimkit.linux.paths import fd_path
from containerd_shimkit.wasm.engine import EngineSettings, create_engine
from containerd_shimkit.wasm.module import load_compiled
from containerd_shimkit.wasm.preview1 import WasiTemplate, output_callback

Environment = tuple[tuple[str, str], ...]

MAX_WORKERS: Final = 1000
"""Of a project; what lies about in an image is often no worker."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Project:
    """A project, ready to be served."""

    routes: RouteTable
    workers: Mapping[str, Worker]
    """By their files; those of routes that are never reached are not among them."""
    assets: Assets
    host: Host
    sources: ExternalSources
    pages: SnapshotPages
    directories: list[int]
    """Descriptors of those that workers see."""

    def close(self) -> None:
        """Let go of what guests ran in."""
        self.host.ticker.stop()
        self.assets.close()
        self.sources.remove()
        while self.directories:
            os.close(self.directories.pop())


def load_project(root: Path, context: RuntimeContext, settings: Settings) -> Project:
    """Return the project at ``root``, its modules compiled and linked. Raises ShimError."""
    files = ProjectFiles(root)
    try:
        return _Loader(files, context, settings).load()
    finally:
        files.close()


@dataclass(frozen=True, slots=True)
class _Folders:
    """The directories that a worker sees: (path, path that it sees)."""

    readable: list[tuple[str, str]]
    """The project's own, whole: with it goes what the container has mounted."""
    writable: list[tuple[str, str]]


class _Loader:
    def __init__(self, files: ProjectFiles, context: RuntimeContext, settings: Settings) -> None:
        self._files = files
        self._context = context
        self._settings = settings
        # Guests that get workers ready take no place of a request.
        engine = create_engine(
            EngineSettings(max_instances=settings.max_requests + LOADING_INSTANCES)
        )
        self._host = Host.create(engine, settings.max_memory_bytes)
        self._stdout = output_callback(context.stdout.write)
        self._stderr = output_callback(context.stderr.write)
        self._linked: dict[str, LinkedModule] = {}
        self._directories: list[int] = []
        self._pages = SnapshotPages(settings.max_snapshot_bytes)
        self._engines: dict[object, LanguageEngine] = {}
        self._sources = ExternalSources(files)

    def load(self) -> Project:
        runtimes = self._runtimes()
        extensions = runtimes.extensions | LANGUAGES.keys() | {"wasm"}
        found = self._files.find_workers(extensions, self._settings.ignore)
        if len(found) > MAX_WORKERS:
            raise ManifestError(
                f"the project has {len(found)} workers, more than {MAX_WORKERS}: "
                "WWS_IGNORE names files that are none"
            )
        routes = RouteTable(Route.of(file, self._settings.prefix) for file in found)
        for route, first in routes.shadowed:
            log.warning(
                "%s: has the route %s of %s, which answers: this file is never run",
                *(shown(route.file), route.path, shown(first.file)),
            )
        assets = Assets(self._files)
        if not found and not assets.exist:
            raise MissingFileError(
                "/: no worker (.wasm, .js, .py) and no directory `public` in the image"
            )
        left_out = {route.file for route, _ in routes.shadowed}
        workers = {
            route.file: self._worker(route.file, runtimes)
            for route in routes.routes
            if route.file not in left_out
        }
        return Project(
            *(routes, workers, assets, self._host, self._sources, self._pages), self._directories
        )

    def _runtimes(self) -> Runtimes:
        try:
            runtimes = load_runtimes(self._files)
        except ManifestError as exc:  # as upstream: without it some files are no workers
            log.error("%s\n/.wws.toml is ignored", exc)
            return Runtimes()
        for warning in runtimes.warnings:
            log.warning("%s", warning)
        return runtimes

    def _worker(self, file: str, runtimes: Runtimes) -> Worker:
        config = self._config(file)
        identity = Identity(shown(file), config, self._stdout, self._stderr)
        environment: Environment = tuple(config.vars.items())
        folders = self._folders(file, config)
        extension = extension_of(file)
        if extension == "wasm":
            wasi = WasiTemplate(
                arguments=[file],
                environment=environment,
                directories=folders.readable,
                writable=folders.writable,
            )
            return CommandWorker(identity, self._module(file), wasi)
        if (runtime := runtimes.of(extension)) is not None and extension not in BUILT_IN:
            wasi = WasiTemplate(
                arguments=runtime.arguments,
                environment=tuple((dict(runtime.environment) | dict(environment)).items()),
                directories=[(self._sources.place(file, runtime), SOURCES), *folders.readable],
                writable=folders.writable,
            )
            return CommandWorker(identity, self._module(runtime.path(runtime.binary)), wasi)
        engine = self._engine(file, LANGUAGES[extension], environment, folders)
        return LanguageWorker(identity, engine, self._source(file))

    def _source(self, file: str) -> str:
        source = self._files.read_text(file)
        if source is None:
            raise MissingFileError(f"{shown(file)}: no such file in the image")
        return source

    def _engine(
        self, file: str, language: str, environment: Environment, folders: _Folders
    ) -> LanguageEngine:
        """Return the engine of a language, the same for all that see the same from within it."""
        key = language, environment, tuple(folders.readable), tuple(folders.writable)
        if key not in self._engines:
            wasi = WasiTemplate(
                environment=environment, directories=folders.readable, writable=folders.writable
            )
            module = self._engine_module(file, language)
            self._engines[key] = LanguageEngine(module, wasi, self._pages)
        return self._engines[key]

    def _engine_module(self, file: str, language: str) -> LinkedModule:
        """Return the module of an engine, compiled when the first worker needs it."""
        key = f"engine {language}"
        if key not in self._linked:
            try:
                wasm = open_engine(language)
            except NoEngineError as exc:
                raise NoEngineError(f"{shown(file)}: {exc}") from None
            try:
                self._linked[key] = self._compiled(wasm, f"the engine {language}.wasm")
            finally:
                os.close(wasm)
        return self._linked[key]

    def _config(self, file: str) -> WorkerConfig:
        name = f"{without_extension(file)}.toml"
        try:
            text = self._files.read_text(name)
            if text is None:
                return WorkerConfig()
            config = parse_worker_config(text, shown(name), self._context.env)
        except UnsupportedFeatureError:
            raise
        except ManifestError as exc:
            log.error("%s\n%s is ignored: %s runs without it", exc, shown(name), shown(file))
            return WorkerConfig()
        for warning in config.warnings:
            log.warning("%s", warning)
        return config

    def _folders(self, file: str, config: WorkerConfig) -> _Folders:
        directory = file.rpartition("/")[0]
        folders = _Folders([], [])
        for folder in config.folders:
            path = f"{directory}/{folder.source}"
            descriptor = self._files.open_directory(path, folder.where)
            if os.path.samestat(os.fstat(descriptor), os.fstat(self._files.fd)):
                # As a process sees it, it holds what is mounted in the container: see guest_files.
                os.close(descriptor)
                folders.readable.extend(self._project_at(folder))
                continue
            self._directories.append(descriptor)
            # Whatever a worker makes of its directories, this is the one that was meant.
            folders.writable.append((fd_path(descriptor), folder.target))
        return folders

    def _project_at(self, folder: Folder) -> list[tuple[str, str]]:
        """Return what shows the whole project, and volumes, where a folder says."""
        found = self._context.directories
        if not any(seen == "/" for _, seen in found):
            raise ManifestError(
                f"{folder.where}: the whole project can be given only where the container has"
                " /proc, from Linux 5.12 on: name directories of it"
            )
        return [
            (place, f"{folder.target}/{seen}".replace("//", "/").rstrip("/") or "/")
            for place, seen in found
        ]

    def _module(self, file: str) -> LinkedModule:
        """Return a module of the project, the same for those that share it."""
        if file not in self._linked:
            wasm = self._files.open_wasm(file)
            try:
                self._linked[file] = self._compiled(wasm, shown(file))
            finally:
                os.close(wasm)
        return self._linked[file]

    def _compiled(self, wasm: int, name: str) -> LinkedModule:
        compiled = self._context.compile(wasm, name)
        try:
            module = load_compiled(self._host.engine, compiled, name)
        finally:
            os.close(compiled)
        return self._host.link(module, name)
