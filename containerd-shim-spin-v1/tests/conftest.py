"""Spin apps served in this process: real guests, the real engine, a directory as the image."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from spin_load.servers import Servers, running_servers

from containerd_shim_spin_v1 import engine as engine_module
from containerd_shim_spin_v1.engine import SpinApp, SpinEngine
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.http.server import listen
from containerd_shimkit.output import OutputWriter
from containerd_shimkit.testing.guests import running_compiler
from containerd_shimkit.wasm.module import Compile

GUESTS = Path(__file__).parent / "guests"
HEAD = 'spin_manifest_version = "1"\nname = "test"\nversion = "1.2.3"\n'


class SpinImage:
    """An image's files, the container's output, and the app made of them."""

    def __init__(self, directory: Path, compiler: Compile) -> None:
        self.root = directory / "image"
        self.root.mkdir()
        self.compiler = compiler
        self.sockets: list[Any] = []
        self.stop = asyncio.Event()
        self.ca_bundle: int | None = None
        self._manifest = HEAD + 'trigger = { type = "http", base = "/" }\n'
        self._stdout, self._stderr = directory / "stdout", directory / "stderr"
        self._files = [os.open(p, os.O_CREAT | os.O_RDWR) for p in (self._stdout, self._stderr)]
        self._write()

    def base(self, base: str) -> None:
        """Set the app's base path."""
        self._manifest = self._manifest.replace('base = "/"', f'base = "{base}"')
        self._write()

    def component(
        self, guest: str, route: str, *, id_: str | None = None, more: str = "", trigger: str = ""
    ) -> None:
        """Add a component. more, trigger: lines of TOML for it and for its trigger."""
        shutil.copyfile(GUESTS / f"{guest}.wasm", self.root / f"{guest}.wasm")
        self._manifest += (
            f'[[component]]\nid = "{id_ or guest}"\nsource = "{guest}.wasm"\n{more}\n'
            f'[component.trigger]\nroute = "{route}"\n{trigger}\n'
        )
        self._write()

    def manifest(self, text: str) -> None:
        """Replace the manifest."""
        self._manifest = text
        self._write()

    def _write(self) -> None:
        (self.root / "spin.toml").write_text(self._manifest)

    def context(self, **env: str) -> RuntimeContext:
        """The container's. env: its environment."""
        defaults = {"SPIN_HTTP_LISTEN_ADDR": "127.0.0.1:0", "SPIN_MAX_INSTANCE_COUNT": "50"}
        return RuntimeContext(
            task_id="test",
            args=("/",),
            env=defaults | env,
            hostname="test",
            memory_limit_bytes=512 << 20,
            processors=1,
            compile=self.compiler,
            ca_bundle=self.ca_bundle,
            stdout=OutputWriter(self._files[0]),
            stderr=OutputWriter(self._files[1]),
        )

    def prepare(self, **env: str) -> SpinApp:
        """Return the prepared app."""
        return SpinEngine().prepare(self.context(**env))

    @asynccontextmanager
    async def serving(self, **env: str) -> AsyncIterator[int]:
        """Serve the app; yields its port."""
        app, self.stop, ready = self.prepare(**env), asyncio.Event(), asyncio.Event()
        engine = SpinEngine()
        engine.listen(app)
        try:
            task = asyncio.create_task(engine.serve(app, ready.set, self.stop))
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                waiting.cancel()
                await task
            try:
                yield self.sockets[-1].getsockname()[1]
            finally:
                self.stop.set()
                async with asyncio.timeout(30):
                    assert await task == 0
        finally:
            engine.close(app)

    def run(self, main: Callable[[int], Coroutine[Any, Any, None]], **env: str) -> None:
        """Call ``main`` with the port of the served app, on the loop that containers have."""

        async def serve() -> None:
            async with self.serving(**env) as port:
                await main(port)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def close(self) -> None:
        for descriptor in self._files:
            os.close(descriptor)


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compile]:
    with running_compiler(tmp_path_factory.mktemp("cache")) as compile_:
        yield compile_


@pytest.fixture
def image(
    tmp_path: Path, compiler: Compile, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SpinImage]:
    found = SpinImage(tmp_path, compiler)

    def listen_and_tell(host: str, port: int) -> Any:
        found.sockets.append(sock := listen(host, port))
        return sock

    monkeypatch.setattr(engine_module, "ROOT", found.root)
    monkeypatch.setattr(engine_module, "listen", listen_and_tell)
    yield found
    found.close()


@pytest.fixture
def probe(image: SpinImage) -> SpinImage:
    """An app whose component does what the path says."""
    image.component("probe", "/...")
    return image


@pytest.fixture(scope="session")
def traffic_servers() -> Iterator[Servers]:
    """What the app of ``load/spin_load`` calls."""
    with running_servers() as running:
        yield running
