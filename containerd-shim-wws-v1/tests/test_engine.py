"""From an image's files to an app: what is refused, what is passed over."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import wasmtime

from containerd_shim_wws_v1.engine import WwsEngine
from containerd_shim_wws_v1.settings import Settings
from containerd_shimkit.environment import SettingError
from containerd_shimkit.errors import ExitCode, ManifestError, MissingFileError, ModuleError
from containerd_shimkit.testing.http import fetch

Image = Any  # of conftest.py

EMPTY_MODULE = b"\0asm\1\0\0\0"
EMPTY_COMMAND = '(memory (export "memory") 1) (func (export "_start"))'
COMPONENT = b"\0asm\x0d\0\1\0"


def test_image_without_anything(image: Image) -> None:
    with pytest.raises(MissingFileError, match="no worker") as caught:
        image.prepare()
    assert caught.value.exit_code == ExitCode.MISSING_FILE


def test_only_files(image: Image) -> None:
    image.file("public/index.html", "page")

    async def main(port: int) -> None:
        assert (await fetch(port, "/")).text == "page"

    image.run(main)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"text", "/bad.wasm: "),
        (b"", "/bad.wasm: "),
        (COMPONENT, "/bad.wasm: "),
        (EMPTY_MODULE, "/bad.wasm: exports no memory named 'memory'"),
    ],
)
def test_module_that_is_none(image: Image, content: bytes, reason: str) -> None:
    image.file("bad.wasm", content)
    with pytest.raises(ModuleError) as caught:
        image.prepare()
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    "wanted",
    [
        '"wasi_snapshot_preview1" "fd_write" (func (param i32))',
        '"wasi_snapshot_preview1" "fd_write" (global i32)',
        '"http" "send-http-request" (func (param v128))',
    ],
)
def test_import_of_another_type(image: Image, wanted: str) -> None:
    image.file("bad.wasm", bytes(wasmtime.wat2wasm(f"(module (import {wanted}) {EMPTY_COMMAND})")))
    with pytest.raises(ModuleError, match=r"^/bad\.wasm: incompatible import type for `"):
        image.prepare()


def test_bad_configuration_is_ignored(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    """As upstream; the worker has no more then than one without."""
    image.worker(config='version = "1"\n[vars]\nA = 1\nB = "2"\n')

    async def main(port: int) -> None:
        assert (await fetch(port, "/probe?mode=environment")).text == "- probe.wasm\n"

    image.run(main)
    assert "/probe.toml:3:1: vars.A = 1: must be a string, not an integer" in caplog.text
    assert "/probe.toml is ignored: /probe.wasm runs without it" in caplog.text


def test_unknown_field_is_logged(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    image.worker(config='version = "1"\ncolour = "red"\n[vars]\nA = "1"\n')

    async def main(port: int) -> None:
        assert "A=1" in (await fetch(port, "/probe?mode=environment")).text

    image.run(main)
    assert "/probe.toml:2:1: colour: unknown field, of no effect" in caplog.text


def test_machine_learning_is_refused(image: Image) -> None:
    image.worker(config='version = "1"\n[features.wasi_nn]\nallowed_backends = ["openvino"]\n')
    with pytest.raises(ManifestError, match=r"this shim has no machine learning \(wasi_nn\)"):
        image.prepare()


def test_folder_that_is_not_there(image: Image) -> None:
    image.worker(config='version = "1"\n[[folders]]\nfrom = "missing"\nto = "/x"\n')
    with pytest.raises(ManifestError) as caught:
        image.prepare()
    assert str(caught.value) == ("/probe.toml:2:1: folders[0]: /missing: No such file or directory")


def test_folder_of_the_project_where_there_is_no_mount_of_it(image: Image) -> None:
    image.worker(config='version = "1"\n[[folders]]\nfrom = "."\nto = "/x"\n')
    with pytest.raises(ManifestError) as caught:
        WwsEngine().prepare(replace(image.context(), directories=()))
    assert str(caught.value).startswith(
        "/probe.toml:2:1: folders[0]: the whole project can be given only where"
    )


def test_two_files_for_one_route(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    image.worker("a/index.wasm")
    image.worker("a.wasm")

    async def main(port: int) -> None:
        assert (await fetch(port, "/a?mode=environment")).text == "- a.wasm\n"

    image.run(main)
    assert "/a/index.wasm: has the route /a of /a.wasm, which answers" in caplog.text


def test_ignored_files(image: Image) -> None:
    image.worker("a.wasm")
    image.file("lib/b.wasm", "no module")

    async def main(port: int) -> None:
        assert (await fetch(port, "/a")).status == 200
        assert (await fetch(port, "/lib/b")).status == 404

    image.run(main, WWS_IGNORE="other/**, lib/**")


def test_too_many_workers(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("containerd_shim_wws_v1.loading.MAX_WORKERS", 1)
    image.worker("a.wasm")
    image.worker("b.wasm")
    with pytest.raises(ManifestError, match="the project has 2 workers, more than 1: WWS_IGNORE"):
        image.prepare()


# Settings


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("WWS_PORT", "x", "WWS_PORT='x' is not a number"),
        ("WWS_PORT", "65536", "WWS_PORT='65536' is not between 0 and 65535"),
        ("WWS_HOST", "example.com", "WWS_HOST='example.com' is not an IP address"),
        ("WWS_HTTP_LISTEN_ADDR", "x:1", "WWS_HTTP_LISTEN_ADDR='x:1' is not an IP address and port"),
        ("WWS_IGNORE", "a**", "WWS_IGNORE: 'a**': `**` must be a whole part of the path"),
        ("WWS_CORS", "a b", "WWS_CORS: 'a b' is no origin"),
        ("WWS_ENABLE_PANEL", "maybe", "WWS_ENABLE_PANEL='maybe' is neither 1 nor 0"),
        ("WWS_REQUEST_URL", "short", "WWS_REQUEST_URL='short' is neither of absolute, path"),
        ("WWS_HTTP_WORKERS", "0", "WWS_HTTP_WORKERS='0' is not between 1 and 64"),
        ("WWS_MAX_INSTANCE_COUNT", "0", "WWS_MAX_INSTANCE_COUNT='0' is not between 1 and 10000"),
    ],
)
def test_setting_that_is_refused(name: str, value: str, reason: str) -> None:
    with pytest.raises(SettingError) as caught:
        Settings.load({name: value}, None)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("env", "limit", "expected"),
    [
        ({}, None, 256 << 20),
        ({}, 2 << 30, 512 << 20),
        ({"WWS_HTTP_WORKERS": "1"}, 2 << 30, 1 << 30),
        ({"WWS_MAX_SNAPSHOT_MEMORY": "1000"}, 2 << 30, 1000),
    ],
)
def test_memory_for_snapshots(env: dict[str, str], limit: int | None, expected: int) -> None:
    assert Settings.load(env, limit, processors=2).max_snapshot_bytes == expected


@pytest.mark.parametrize(
    ("env", "address"),
    [
        ({}, ("0.0.0.0", 3000)),
        ({"WWS_PORT": "80"}, ("0.0.0.0", 80)),
        ({"WWS_HOST": "127.0.0.1"}, ("127.0.0.1", 3000)),
        ({"WWS_HOST": "localhost"}, ("127.0.0.1", 3000)),
        ({"WWS_HOST": "::1", "WWS_PORT": "1"}, ("::1", 1)),
        ({"WWS_HTTP_LISTEN_ADDR": "[::]:5", "WWS_PORT": "1"}, ("::", 5)),
    ],
)
def test_address(env: dict[str, str], address: tuple[str, int]) -> None:
    settings = Settings.load(env, None)
    assert (settings.host, settings.port) == address


@pytest.mark.parametrize(("kv", "processes"), [("", 4), ('[data.kv]\nnamespace = "a"\n', 1)])
def test_values_in_memory_are_of_one_process(image: Image, kv: str, processes: int) -> None:
    image.worker(config=f'version = "1"\n{kv}')
    app = image.prepare(WWS_HTTP_WORKERS="4")
    assert WwsEngine().listen(app) == processes
    app.socket.close()
    WwsEngine().close(app)


# The panel


def test_panel_is_off(image: Image) -> None:
    image.worker()

    async def main(port: int) -> None:
        assert (await fetch(port, "/_api/v0/workers")).status == 404
        assert (await fetch(port, "/_panel/")).status == 404

    image.run(main)


def test_panel(image: Image) -> None:
    config = (
        'version = "1"\nname = "<b>"\n[data.kv]\nnamespace = "n"\n'
        '[vars]\nA = "1"\nB = "$SECRET"\n[[folders]]\nfrom = "."\nto = "/x"\n'
    )
    image.worker("api/probe.wasm", config=config)

    async def main(port: int) -> None:
        (listed,) = json.loads((await fetch(port, "/_api/v0/workers")).body)
        assert listed == {
            "id": listed["id"],
            "name": "<b>",
            "path": "/api/probe",
            "filepath": "/api/probe.wasm",
        }
        details = await fetch(port, f"/_api/v0/workers/{listed['id']}")
        assert json.loads(details.body) == {
            "id": listed["id"],
            "name": "<b>",
            "version": "1",
            "data": {"kv": "n"},
            "folders": [{"from": ".", "to": "/x"}],
            "vars": {"A": "1", "B": "(from the environment)"},
        }
        assert (await fetch(port, "/_api/v0/workers/other")).status == 404
        assert (await fetch(port, "/_panel", method="POST", body=b"")).status == 405
        page = (await fetch(port, "/_panel/")).text
        assert "<td>/api/probe</td>" in page
        assert "<td>&lt;b&gt;</td>" in page
        assert "secret" not in page

    image.run(main, WWS_ENABLE_PANEL="1", SECRET="secret")
