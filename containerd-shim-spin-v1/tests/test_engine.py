"""From an image to an app: what is refused, with which words, and how serving ends."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from containerd_shim_spin_v1.engine import fitting
from containerd_shim_spin_v1.settings import Settings
from containerd_shimkit.errors import (
    ExitCode,
    ListenError,
    ManifestError,
    MissingFileError,
    ModuleError,
    ShimError,
)
from containerd_shimkit.http.server import listen
from containerd_shimkit.testing import in_clean_process
from containerd_shimkit.testing.http import connected, fetch, head

Image = Any  # of conftest.py
REPOSITORY = Path(__file__).parents[2]


def refusal(image: Image, kind: type[ShimError], **env: str) -> str:
    with pytest.raises(kind) as caught:
        image.prepare(**env)
    return str(caught.value)


def test_missing_manifest(image: Image) -> None:
    (image.root / "spin.toml").unlink()
    assert "/spin.toml: no such file in the image" in refusal(image, MissingFileError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "/spin.toml"),
        (b"not toml", "/spin.toml"),
        (b"\xff\xfe", "/spin.toml: not UTF-8: byte 0"),
        (b"#" * ((1 << 20) + 1), "/spin.toml: larger than 1048576 bytes"),
    ],
)
def test_bad_manifest(image: Image, content: bytes, message: str) -> None:
    (image.root / "spin.toml").write_bytes(content)
    assert message in refusal(image, ManifestError)


def test_manifest_that_is_no_file(image: Image) -> None:
    (image.root / "spin.toml").unlink()
    (image.root / "spin.toml").mkdir()
    assert "/spin.toml: cannot be read: Is a directory" in refusal(image, ManifestError)
    (image.root / "spin.toml").rmdir()
    os.mkfifo(image.root / "spin.toml")
    refusal(image, ManifestError)


def test_missing_module(probe: Image) -> None:
    (probe.root / "probe.wasm").unlink()
    message = refusal(probe, MissingFileError)
    assert message == "component 'probe': probe.wasm: no such file in the image"


@pytest.mark.parametrize(
    ("guest", "message"),
    [
        ("not_wasm", "is no WebAssembly"),
        ("no_handler", "exports no function 'handle-http-request'"),
        ("wrong_signature", "function 'handle-http-request' has type (i64) -> (i64), not (i32"),
        ("unknown_import", "imports mystery.function, which this shim does not provide"),
        ("wagi_probe", 'wants executor = { type = "wagi" }'),
    ],
)
def test_module_that_is_no_component(image: Image, guest: str, message: str) -> None:
    image.component(guest, "/")
    found = refusal(image, ModuleError)
    assert found.startswith(f"component '{guest}': {guest}.wasm: ")
    assert message in found
    assert ModuleError.exit_code == ExitCode.INVALID_MODULE


EXPORTS = """(module
  (func (export "handle-http-request") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    unreachable)
  (func (export "canonical_abi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
  (func (export "_start"))
  %s)"""


@pytest.mark.parametrize("executor", ["spin", "wagi"])
@pytest.mark.parametrize(
    "export",
    [
        "",
        '(func (export "memory"))',
        '(global (export "memory") i32 (i32.const 0))',
        '(table (export "memory") 1 funcref)',
    ],
)
def test_memory_that_is_none(image: Image, export: str, executor: str) -> None:
    """Taken for a memory it would end the process."""
    image.component("probe", "/", trigger=f'executor = {{ type = "{executor}" }}')
    (image.root / "probe.wasm").write_bytes(wasmtime.wat2wasm(EXPORTS % export))
    assert "exports no memory named 'memory'" in refusal(image, ModuleError)


def test_wagi_entrypoint_that_is_missing(image: Image) -> None:
    executor = 'executor = { type = "wagi", entrypoint = "walk" }'
    image.component("wagi_probe", "/", trigger=executor)
    assert "exports no function 'walk', the wagi entrypoint" in refusal(image, ModuleError)


def test_bad_setting(probe: Image) -> None:
    message = refusal(probe, ShimError, SPIN_MAX_INSTANCE_COUNT="many")
    assert message == "SPIN_MAX_INSTANCE_COUNT='many' is not a number"


def test_shadowed_route_is_logged(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    image.component("probe", "/a", id_="first")
    image.component("probe", "/a/", id_="second")
    image.prepare()
    assert 'of component "first" duplicates that of component "second"' in caplog.text


def test_unmatched_files_are_logged(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    image.component("probe", "/", more='files = ["nothing/*"]')
    image.prepare()
    assert "component 'probe': files: 'nothing/*' matches nothing" in caplog.text


@in_clean_process
def test_requests_at_once_fit_the_address_space() -> None:
    settings = Settings.load({}, None)
    assert fitting(settings) == settings
    resource.setrlimit(resource.RLIMIT_AS, (512 << 30, resource.RLIM_INFINITY))
    assert fitting(settings).max_requests == 62


def test_port_in_use(probe: Image) -> None:
    with listen("127.0.0.1", 0) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"

        async def main(_port: int) -> None:
            raise AssertionError("serves")

        with pytest.raises(ListenError, match=f"cannot listen on {address}: Address already"):
            probe.run(main, SPIN_HTTP_LISTEN_ADDR=address)


def test_copies_are_removed_at_the_end(
    image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr("containerd_shimkit.scratch.PLACES", (str(tmp_path / "copies"),))
    (image.root / "page.txt").write_text("page")
    image.component("probe", "/...", more='files = ["*.txt"]')

    async def main(port: int) -> None:
        assert (await fetch(port, "/file?path=/page.txt")).text == "page"
        assert len(list((tmp_path / "copies").iterdir())) == 1

    image.run(main)
    assert list((tmp_path / "copies").iterdir()) == []


def test_request_in_flight_ends_after_the_stop(probe: Image) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            await connection.send(head("POST", "/echo", [("content-length", "4")]) + b"12")
            await fetch(port, "/echo")
            probe.stop.set()
            await asyncio.sleep(0)
            await connection.send(b"34")
            response = await connection.response()
            assert (response.text, response["connection"]) == ("1234", "close")

    probe.run(main)


def test_example_image_answers(image: Image) -> None:
    shutil.rmtree(image.root)
    shutil.copytree(REPOSITORY / "images" / "spin", image.root)

    async def main(port: int) -> None:
        hello = await fetch(port, "/hello")
        assert (hello.status, hello.text.strip()) == (200, "Hello world from Spin!")
        assert (await fetch(port, "/c-hello")).status == 200
        assert (await fetch(port, "/wagi-hello")).status == 200

    image.run(main)
