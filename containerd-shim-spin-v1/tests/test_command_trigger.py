"""Components that run once, as programs."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import uvloop
import wasmtime

from containerd_shim_spin_v1.component_logs import ComponentLogs
from containerd_shim_spin_v1.files.assets import Assets
from containerd_shim_spin_v1.host.services import Services, ServiceSources
from containerd_shim_spin_v1.loading import link_components
from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.runtime_config.model import RuntimeConfig
from containerd_shim_spin_v1.settings import Settings
from containerd_shim_spin_v1.triggers.command import CommandRun
from containerd_shimkit.errors import ModuleError

PROBE = Path(__file__).parent / "guests" / "wagi_probe.wasm"
MANIFEST = """
spin_manifest_version = 2
[application]
name = "test"
[[trigger.command]]
component = "once"
[component.once]
source = "once.wasm"
files = [{ source = "data", destination = "/data" }]
environment = { QUERY_STRING = "mode=%s" }
"""


def run(
    image: Any, mode: str, *arguments: str, wat: str | None = None, stop_after: float | None = None
) -> int:
    """Return the exit code of the probe, or of a module that is given."""
    shutil.copyfile(PROBE, image.root / "once.wasm")
    if wat is not None:
        (image.root / "once.wasm").write_bytes(wasmtime.wat2wasm(wat))
    (image.root / "data").mkdir(exist_ok=True)
    manifest, context = parse_manifest(MANIFEST % mode), image.context()
    sources = ServiceSources.read(image.root, context, manifest, RuntimeConfig())

    async def main() -> int:
        services = await Services.open(sources)
        settings = Settings.load(context.env, context.memory_limit_bytes)
        assets, logs = Assets(), ComponentLogs(image.root, None)
        components = link_components(
            image.root, manifest.components, context, settings, logs, assets
        )
        components["once"].use(services)
        stop = asyncio.Event()
        if stop_after is not None:
            asyncio.get_running_loop().call_later(stop_after, stop.set)
        try:
            async with asyncio.timeout(30):
                return await CommandRun(components["once"], arguments).run(stop)
        finally:
            assets.remove()
            await services.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [(("/",), ["/"]), (("/", "-v", "é x"), ["/", "-v", "é x"]), ((), ["once"])],
)
def test_arguments_are_the_containers(
    image: Any, arguments: tuple[str, ...], seen: list[str]
) -> None:
    assert run(image, "args", *arguments) == 0
    assert image.stdout.splitlines()[2:] == seen


def test_environment_is_the_components(image: Any) -> None:
    assert run(image, "env", "/") == 0
    assert image.stdout.splitlines()[2:] == ["QUERY_STRING=mode=env"]


def test_standard_input_is_empty(image: Any) -> None:
    assert run(image, "echo", "/") == 0
    assert image.stdout == "content-type: application/octet-stream\n\n"


def test_standard_error(image: Any) -> None:
    assert run(image, "stderr", "/") == 0
    assert "on standard error" in image.stderr


@pytest.mark.parametrize("code", [0, 1, 7, 125])
def test_exit_code(image: Any, code: int) -> None:
    assert run(image, f"exit&code={code}", "/") == code


def test_trap(image: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert run(image, "trap", "/") == 134
    assert "component 'once' failed: " in caplog.text


@pytest.mark.parametrize("mode", ["loop", "sleep&ms=100000"])
def test_program_is_cut_off_when_the_app_stops(
    image: Any, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    assert run(image, mode, "/", stop_after=0.1) == 143
    assert "component 'once' is cut off: the app stops" in caplog.text


@pytest.mark.parametrize(
    ("wat", "message"),
    [
        ('(module (memory (export "memory") 1))', r"exports no function '_start', the command to"),
        ('(module (func (export "_start")))', "exports no memory named 'memory'"),
    ],
)
def test_module_that_is_no_program(image: Any, wat: str, message: str) -> None:
    with pytest.raises(ModuleError, match=f"component 'once': once.wasm: {message}"):
        run(image, "normal", wat=wat)
