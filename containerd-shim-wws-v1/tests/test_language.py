"""Sources and the engines of their languages: loaded once, and a snapshot for each request."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
import uvloop

from containerd_shim_wws_v1 import loading
from containerd_shim_wws_v1.engine import WwsEngine
from containerd_shim_wws_v1.workers import engines
from containerd_shim_wws_v1.workers.engines import NoEngineError, open_engine
from containerd_shimkit.errors import ModuleError
from containerd_shimkit.testing.http import connected, fetch, head

Image = Any  # of conftest.py

GUESTS = Path(__file__).parent / "guests"
FAILED = b"<p>There was an error running this function</p>"


@pytest.fixture
def project(image: Image, monkeypatch: pytest.MonkeyPatch) -> Image:
    """An image whose .js files are sources for the engine of these tests."""
    monkeypatch.setattr(
        loading, "open_engine", lambda _: os.open(GUESTS / "engine.wasm", os.O_RDONLY)
    )
    return image


def test_each_request_begins_where_loading_ended(project: Image) -> None:
    project.file("a.js", "count")
    project.file("b/index.js", "count")

    async def main(port: int) -> None:
        for _ in range(3):
            assert (await fetch(port, "/a")).text == "/a.js 1"
            assert (await fetch(port, "/b")).text == "/b/index.js 1"
        answers = await asyncio.gather(*(fetch(port, "/a") for _ in range(40)))
        assert {each.text for each in answers} == {"/a.js 1"}

    project.run(main)


@pytest.mark.parametrize("size", [1, 8])
def test_memory_that_grew_while_loading(project: Image, size: int) -> None:
    project.file("a.js", f"grow {size}")

    async def main(port: int) -> None:
        expected = f"{size << 20} of {size << 20}"
        for _ in range(2):
            assert (await fetch(port, "/a")).text == expected

    project.run(main)


def test_request(project: Image) -> None:
    project.file("[id].js", "request")

    async def main(port: int) -> None:
        response = await fetch(port, "/a%20b?c", method="POST", body=b"x" * 1_000_000)
        request = json.loads(response.body)
        assert request["url"] == "http://test/a%20b?c"
        assert request["params"] == {"id": "a b"}
        assert request["body"] == "x" * 1_000_000

    project.run(main)


def test_configuration(project: Image) -> None:
    project.file("a.js", "variable")
    project.file("a.toml", 'version = "1"\n[vars]\nNAME = "value"\n')
    project.file("b.js", "variable")

    async def main(port: int) -> None:
        assert (await fetch(port, "/a")).text == "value"
        assert (await fetch(port, "/b")).text == "none"

    project.run(main)


def test_output_is_the_containers(project: Image) -> None:
    project.file("a.js", "print")

    async def main(port: int) -> None:
        assert (await fetch(port, "/a")).status == 200

    project.run(main)
    assert project.stdout == "a line for people\n"
    assert project.stderr == "a line for the log\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("fail", "the worker failed; why is said above"),
        ("trap", "unreachable"),
        ("nothing", "the worker's output is no JSON: it is empty"),
        ("bad", "the guest named 4096 bytes at 0xfffffff0"),
        ("flood 65", "the worker gives more than 67108864 bytes"),
        ("flood 60", "the guest named 62914560 bytes"),
    ],
)
def test_failure(
    project: Image, caplog: pytest.LogCaptureFixture, source: str, reason: str
) -> None:
    project.file("a.js", source)
    project.file("good.js", "count")

    async def main(port: int) -> None:
        response = await fetch(port, "/a")
        assert (response.status, response.body) == (500, FAILED)
        assert (await fetch(port, "/good")).text == "/good.js 1"

    project.run(main)
    assert "/a.js: GET /a failed: " in caplog.text
    assert reason in caplog.text
    if source == "fail":
        assert project.stderr == "/a.js:1: no luck today\n"


def test_loop_is_ended(project: Image) -> None:
    project.file("a.js", "loop")

    async def main(port: int) -> None:
        assert (await fetch(port, "/a")).status == 504

    project.run(main, WWS_HTTP_REQUEST_TIMEOUT_SECONDS="0.5")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("load fail", "/a.js cannot be loaded, and is answered 500: it cannot be evaluated"),
        ("load trap", "/a.js cannot be loaded, and is answered 500: "),
        ("load loop", "/a.js takes more than 0.5 s to load, and is answered 500"),
    ],
)
def test_source_that_cannot_be_loaded(
    project: Image, caplog: pytest.LogCaptureFixture, source: str, reason: str
) -> None:
    """The others are served."""
    project.file("a.js", source)
    project.file("good.js", "count")

    async def main(port: int) -> None:
        response = await fetch(port, "/a")
        assert (response.status, response.body) == (500, FAILED)
        assert (await fetch(port, "/good")).text == "/good.js 1"

    project.run(main, WWS_HTTP_REQUEST_TIMEOUT_SECONDS="0.5")
    assert reason in caplog.text
    if source == "load fail":
        assert project.stderr == "/a.js:1: cannot be loaded\n"


def test_stop_while_a_source_is_loaded(project: Image) -> None:
    """Nobody waits for it: Kubernetes would kill the app."""
    project.file("a.js", "load loop")

    async def main() -> None:
        app, stop = project.prepare(), asyncio.Event()
        engine = WwsEngine()
        engine.listen(app)
        asyncio.get_running_loop().call_later(0.05, stop.set)
        try:
            async with asyncio.timeout(30):
                assert await engine.serve(app, lambda: pytest.fail("it is not ready"), stop) == 0
        finally:
            engine.close(app)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("source", ["load loop", "count"])
def test_requests_are_answered_before_all_is_loaded(
    project: Image, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the others do; the request's worker is loaded first."""
    monkeypatch.setattr("containerd_shim_wws_v1.engine._LOADING_SECONDS", 0)
    for number in range(100):
        project.file(f"{number}.js", "count" if number else source)
    project.file("z.js", "count")

    async def main(port: int) -> None:
        answers = await asyncio.gather(*(fetch(port, "/z") for _ in range(20)))
        assert {each.text for each in answers} == {"/z.js 1"}
        assert (await fetch(port, "/99")).text == "/99.js 1"

    project.run(main, WWS_HTTP_REQUEST_TIMEOUT_SECONDS="600")


def test_loading_goes_on_when_a_client_goes_away(
    project: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("containerd_shim_wws_v1.engine._LOADING_SECONDS", 0)
    project.file("a.js", "load loop")
    project.file("b.js", "load loop")

    async def main(port: int) -> None:
        for _ in range(3):
            async with connected(port) as connection:
                await connection.send(head("GET", "/b"))
        async with asyncio.timeout(30):
            while (status := (await fetch(port, "/b")).status) != 500:
                assert status == 504

    project.run(main, WWS_HTTP_REQUEST_TIMEOUT_SECONDS="0.5")


def test_stop_while_a_request_waits_for_its_worker(
    project: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("containerd_shim_wws_v1.engine._LOADING_SECONDS", 0)
    project.file("a.js", "load loop")

    async def main(port: int) -> None:
        async with connected(port) as connection:
            await connection.send(head("GET", "/a"))
            assert (await fetch(port, "/.well-known/wws/health")).status == 200
            project.stop.set()
            assert (await connection.response()).status == 503

    project.run(main, WWS_SHUTDOWN_TIMEOUT_SECONDS="0.2")


def test_snapshots_are_bounded(project: Image, caplog: pytest.LogCaptureFixture) -> None:
    project.file("a.js", "count")

    async def main(port: int) -> None:
        assert (await fetch(port, "/a")).status == 500

    project.run(main, WWS_MAX_SNAPSHOT_MEMORY="4095")
    assert "/a.js cannot be loaded, and is answered 500: its snapshot needs more" in caplog.text
    assert "WWS_MAX_SNAPSHOT_MEMORY gives more" in caplog.text


def test_what_snapshots_share_is_kept_once(project: Image) -> None:
    for number in range(10):
        project.file(f"{number}.js", f"grow {number}")

    async def main(port: int) -> None:
        for number in range(10):
            expected = f"{number << 20} of {number << 20}"
            assert (await fetch(port, f"/{number}")).text == expected

    project.run(main, WWS_MAX_SNAPSHOT_MEMORY=str(1 << 20))


def test_memory_limit(project: Image, caplog: pytest.LogCaptureFixture) -> None:
    project.file("a.js", "grow 8")
    project.file("b.js", "count")

    async def main(port: int) -> None:
        assert (await fetch(port, "/a")).status == 500
        assert (await fetch(port, "/b")).status == 200

    project.run(main, WWS_MAX_INSTANCE_MEMORY=str(4 << 20))
    assert "/a.js cannot be loaded" in caplog.text


def test_module_that_is_no_engine(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    wasm = GUESTS / "probe.wasm"
    monkeypatch.setattr(loading, "open_engine", lambda _: os.open(wasm, os.O_RDONLY))
    image.file("a.js", "count")
    with pytest.raises(ModuleError, match="exports no function '_initialize': it is no engine"):
        image.prepare()


@pytest.mark.parametrize(("file", "language"), [("hello.js", "JavaScript"), ("hello.py", "Python")])
def test_shim_without_the_engine(
    image: Image, monkeypatch: pytest.MonkeyPatch, file: str, language: str
) -> None:
    monkeypatch.setattr(engines, "_PACKAGE", "containerd_shim_wws_v1.http")
    image.file(file, "anything")
    with pytest.raises(NoEngineError) as caught:
        image.prepare()
    assert str(caught.value) == (
        f"/{file}: this shim was built without its {language} engine: "
        "`make engines`, then `make build`"
    )


def test_engine_where_nothing_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_PACKAGE", "containerd_shim_wws_v1.missing.engines")
    with pytest.raises(NoEngineError, match="the JavaScript engine cannot be read: "):
        open_engine("javascript")
