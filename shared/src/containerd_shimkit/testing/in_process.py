"""Apps served in the test's own process: real guests, a shim's engine, a directory as the image.

A shim's tests derive from ``InProcessImage``, and say what files its apps have.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import pytest
import uvloop

from containerd_shimkit.engine import Engine, RuntimeContext
from containerd_shimkit.http.server import listen
from containerd_shimkit.output import OutputWriter
from containerd_shimkit.testing.guests import running_compiler
from containerd_shimkit.wasm.module import Compile

_SECONDS = 30.0
"""For an app to end."""
_CLOSING_SECONDS = 5.0
"""For the other ends of its TLS connections to close them, too."""

Image = TypeVar("Image", bound="InProcessImage")


class InProcessImage:
    """An image's files, the container's output, and the app made of them."""

    engine: ClassVar[Callable[[], Engine]]
    environment: ClassVar[Mapping[str, str]]
    """What the container has in any case."""

    def __init__(self, directory: Path, compiler: Compile) -> None:
        self.root = directory / "image"
        self.root.mkdir()
        self.compiler = compiler
        self.args: tuple[str, ...] = ("/",)
        self.ca_bundle: int | None = None
        self.sockets: list[Any] = []
        """What the app has bound, in order."""
        self.stop = asyncio.Event()
        self._stdout, self._stderr = directory / "stdout", directory / "stderr"
        self._files = [os.open(p, os.O_CREAT | os.O_RDWR) for p in (self._stdout, self._stderr)]

    def context(self, **env: str) -> RuntimeContext:
        """The container's. env: its environment."""
        return RuntimeContext(
            task_id="test",
            args=self.args,
            env={**self.environment, **env},
            hostname="test",
            memory_limit_bytes=512 << 20,
            processors=1,
            compile=self.compiler,
            ca_bundle=self.ca_bundle,
            directories=((str(self.root), "/"),),
            stdout=OutputWriter(self._files[0]),
            stderr=OutputWriter(self._files[1]),
        )

    def prepare(self, **env: str) -> Any:
        """Return the prepared app."""
        return type(self).engine().prepare(self.context(**env))

    @asynccontextmanager
    async def serving(self, **env: str) -> AsyncIterator[int]:
        """Serve the app; yields the port of its first server."""
        bound, others = len(self.sockets), _open_sockets()
        app, ready = self.prepare(**env), asyncio.Event()
        stop = self.stop = asyncio.Event()  # of one, where several are served
        engine = type(self).engine()
        try:
            engine.listen(app)
            task = asyncio.create_task(engine.serve(app, ready.set, stop))
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                waiting.cancel()
                await task
            try:
                yield self.sockets[bound].getsockname()[1]
            finally:
                stop.set()
                async with asyncio.timeout(_SECONDS):
                    assert await task == 0
        finally:
            engine.close(app)
            await _closed_but(others)

    def run(self, main: Callable[[int], Coroutine[Any, Any, None]], **env: str) -> None:
        """Call ``main`` with the port of the served app, on the loop that containers have."""

        async def serve() -> None:
            async with self.serving(**env) as port:
                await main(port)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    def run_to_the_end(self, stop: bool = False, **env: str) -> int:
        """Run an app that ends by itself, or at once if told to ``stop``; return its exit code."""

        async def serve() -> int:
            others = _open_sockets()
            app, self.stop = self.prepare(**env), asyncio.Event()
            engine = type(self).engine()
            try:
                engine.listen(app)
                async with asyncio.timeout(_SECONDS):
                    return await engine.serve(app, self.stop.set if stop else _ignore, self.stop)
            finally:
                engine.close(app)
                await _closed_but(others)

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


def open_image(
    kind: type[Image],
    directory: Path,
    compiler: Compile,
    monkeypatch: pytest.MonkeyPatch,
    *,
    root: ModuleType,
    binds: ModuleType,
) -> Iterator[Image]:
    """Yield an image in ``directory``: the body of a shim's fixture.

    root, binds: modules of the shim that have ``ROOT``, and call ``listen``.
    """
    image = kind(directory, compiler)

    def listen_and_tell(host: str, port: int) -> Any:
        image.sockets.append(sock := listen(host, port))
        return sock

    monkeypatch.setattr(root, "ROOT", image.root)
    monkeypatch.setattr(binds, "listen", listen_and_tell)
    yield image
    image.close()


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compile]:
    """What compiles modules for the apps in this process."""
    with running_compiler(tmp_path_factory.mktemp("cache")) as compile_:
        yield compile_


def _ignore() -> None:
    pass


def _open_sockets() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the directory's own
            found.add(str(entry.readlink()))
    return {target for target in found if target.startswith("socket:")}


async def _closed_but(others: set[str]) -> None:
    """Wait until an app's sockets are closed, or for as long as that may take.

    It does not wait itself for the other ends of connections: its process ends. But uvloop warns of
    those with TLS that are open when a loop is closed.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSING_SECONDS):
            while _open_sockets() - others:  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(0.01)
