"""Slight apps run in this process: real guests, the real engine, a directory as the image."""

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

from containerd_shim_slight_v1 import engine as engine_module
from containerd_shim_slight_v1.engine import SlightApp, SlightEngine
from containerd_shim_slight_v1.http import servers as servers_module
from containerd_shimkit.engine import RuntimeContext
from containerd_shimkit.http.server import listen
from containerd_shimkit.output import OutputWriter
from containerd_shimkit.testing.guests import running_compiler
from containerd_shimkit.wasm.module import Compile

GUESTS = Path(__file__).parent / "guests"
VERSION = 'specversion = "0.2"\n'
HTTP = '[[capability]]\nresource = "http"\nname = "api"\n'
PROBE = (
    f"{VERSION}{HTTP}"
    '[[capability]]\nresource = "keyvalue.filesystem"\nname = "*"\n'
    '[[capability]]\nresource = "configs.envvars"\nname = "env"\n'
)


class SlightImage:
    """An image's files, the container's output, and the app made of them."""

    def __init__(self, directory: Path, compiler: Compile) -> None:
        self.root = directory / "image"
        self.root.mkdir()
        self.temporary = directory / "tmp"
        self.compiler = compiler
        self.args: tuple[str, ...] = ("/",)
        self.sockets: list[Any] = []
        self.stop = asyncio.Event()
        self._stdout, self._stderr = directory / "stdout", directory / "stderr"
        self._files = [os.open(p, os.O_CREAT | os.O_RDWR) for p in (self._stdout, self._stderr)]
        self.slightfile(PROBE)
        self.guest("probe")

    def slightfile(self, text: str) -> None:
        (self.root / "slightfile.toml").write_text(text)

    def guest(self, name: str) -> None:
        """Make a guest of the tests the app's module."""
        shutil.copyfile(GUESTS / f"{name}.wasm", self.root / "app.wasm")

    def context(self, **env: str) -> RuntimeContext:
        """The container's. env: its environment."""
        defaults = {
            "SLIGHT_HTTP_LISTEN_ADDR": "127.0.0.1:0",
            "SLIGHT_MAX_INSTANCE_COUNT": "50",
            "TMPDIR": str(self.temporary),
        }
        return RuntimeContext(
            task_id="test",
            args=self.args,
            env=defaults | env,
            hostname="test",
            memory_limit_bytes=512 << 20,
            processors=1,
            compile=self.compiler,
            ca_bundle=None,
            stdout=OutputWriter(self._files[0]),
            stderr=OutputWriter(self._files[1]),
        )

    def prepare(self, **env: str) -> SlightApp:
        """Return the prepared app."""
        return SlightEngine().prepare(self.context(**env))

    @asynccontextmanager
    async def serving(self, **env: str) -> AsyncIterator[int]:
        """Serve the app; yields the port of its first server."""
        app, self.stop, ready = self.prepare(**env), asyncio.Event(), asyncio.Event()
        engine = SlightEngine()
        assert engine.listen(app) == 1
        task = asyncio.create_task(engine.serve(app, ready.set, self.stop))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            waiting.cancel()
            await task
        try:
            yield self.sockets[0].getsockname()[1]
        finally:
            self.stop.set()
            async with asyncio.timeout(30):
                assert await task == 0

    def run(self, main: Callable[[int], Coroutine[Any, Any, None]], **env: str) -> None:
        """Call ``main`` with the port of the served app, on the loop that containers have."""

        async def serve() -> None:
            async with self.serving(**env) as port:
                await main(port)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    def run_to_the_end(self, stop: bool = False, **env: str) -> int:
        """Run a program, or what serves nothing; return its exit code."""

        async def serve() -> int:
            app, self.stop = self.prepare(**env), asyncio.Event()
            ready = self.stop.set if stop else lambda: None
            async with asyncio.timeout(30):
                return await SlightEngine().serve(app, ready, self.stop)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve())

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
) -> Iterator[SlightImage]:
    """An app whose handlers do what the path says."""
    found = SlightImage(tmp_path, compiler)

    def listen_and_tell(host: str, port: int) -> Any:
        found.sockets.append(sock := listen(host, port))
        return sock

    monkeypatch.setattr(engine_module, "ROOT", found.root)
    monkeypatch.setattr(servers_module, "listen", listen_and_tell)
    yield found
    found.close()
