"""Wws apps run in this process: real guests, the real engine, a directory as the image."""

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

from containerd_shim_wws_v1 import engine as engine_module
from containerd_shim_wws_v1.engine import WwsApp, WwsEngine
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.output import OutputWriter
from containerd_shimkit.testing.guests import running_compiler
from containerd_shimkit.wasm.module import Compile

GUESTS = Path(__file__).parent / "guests"


class WwsImage:
    """An image's files, the container's output, and the app made of them."""

    def __init__(self, directory: Path, compiler: Compile) -> None:
        self.root = directory / "image"
        self.root.mkdir()
        self.compiler = compiler
        self.stop = asyncio.Event()
        self._stdout, self._stderr = directory / "stdout", directory / "stderr"
        self._files = [os.open(p, os.O_CREAT | os.O_RDWR) for p in (self._stdout, self._stderr)]

    def worker(self, path: str = "probe.wasm", guest: str = "probe", config: str = "") -> None:
        """Put a guest of the tests into the project, and its configuration beside it."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(GUESTS / f"{guest}.wasm", target)
        if config:
            target.with_suffix(".toml").write_text(config)

    def file(self, path: str, content: str | bytes = "") -> None:
        """Write any other file of the project."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    def context(self, **env: str) -> RuntimeContext:
        """The container's. env: its environment."""
        defaults = {"WWS_HTTP_LISTEN_ADDR": "127.0.0.1:0", "WWS_MAX_INSTANCE_COUNT": "50"}
        return RuntimeContext(
            task_id="test",
            args=("/",),
            env=defaults | env,
            hostname="test",
            memory_limit_bytes=512 << 20,
            processors=1,
            compile=self.compiler,
            ca_bundle=None,
            stdout=OutputWriter(self._files[0]),
            stderr=OutputWriter(self._files[1]),
        )

    def prepare(self, **env: str) -> WwsApp:
        """Return the prepared app."""
        return WwsEngine().prepare(self.context(**env))

    @asynccontextmanager
    async def serving(self, **env: str) -> AsyncIterator[int]:
        """Serve the app; yields its port."""
        app, self.stop, ready = self.prepare(**env), asyncio.Event(), asyncio.Event()
        engine = WwsEngine()
        assert engine.listen(app) == 1
        assert app.socket is not None
        port = int(app.socket.getsockname()[1])
        task = asyncio.create_task(engine.serve(app, ready.set, self.stop))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            waiting.cancel()
            await task
        try:
            yield port
        finally:
            self.stop.set()
            async with asyncio.timeout(30):
                assert await task == 0
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
def image(tmp_path: Path, compiler: Compile, monkeypatch: pytest.MonkeyPatch) -> Iterator[WwsImage]:
    """An empty image; see ``WwsImage.worker``."""
    found = WwsImage(tmp_path, compiler)
    monkeypatch.setattr(engine_module, "ROOT", found.root)
    yield found
    found.close()
