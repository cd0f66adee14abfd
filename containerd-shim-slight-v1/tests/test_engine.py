"""From an image's files to an app: what is refused, and programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from containerd_shim_slight_v1 import capabilities
from containerd_shim_slight_v1.settings import Settings
from containerd_shim_slight_v1.slightfile.resources import RESOURCES
from containerd_shimkit.environment import SettingError
from containerd_shimkit.errors import ExitCode, ManifestError, MissingFileError, ModuleError

Image = Any  # of conftest.py

VERSION = 'specversion = "0.1"\n'
KV = '[[capability]]\nname = "kv.filesystem"\n'
HTTP = '[[capability]]\nname = "http"\n'

NO_INIT = b"\0asm\1\0\0\0"


@pytest.fixture
def program(image: Image) -> Image:
    """An app that runs once, of SpiderLightning 0.2."""
    image.slightfile(VERSION + KV)
    image.guest("program")
    return image


# Files


@pytest.mark.parametrize("name", ["slightfile.toml", "app.wasm"])
def test_missing_file(image: Image, name: str) -> None:
    (image.root / name).unlink()
    with pytest.raises(MissingFileError, match=f"^/{name}: no such file in the image"):
        image.prepare()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('specversion = "9"', '/slightfile.toml:1:1: specversion = "9": known versions: 0.1, 0.2'),
        (
            VERSION + '[[capability]]\nname = "keyvalue.dapr"\n',
            "/slightfile.toml:2:1: capability[0]: keyvalue.dapr is not served by this shim",
        ),
        (
            VERSION.replace("1", "2")
            + '[[capability]]\nresource = "keyvalue.dapr"\nname = "store"\n',
            "/slightfile.toml:2:1: capability[0]: keyvalue.dapr is not served by this shim",
        ),
        (
            VERSION + '[[capability]]\nname = "kv.redis"\n',
            "/slightfile.toml:2:1: capability[0]: keyvalue.redis needs the config REDIS_ADDRESS",
        ),
    ],
)
def test_slightfile_that_is_refused(image: Image, text: str, reason: str) -> None:
    image.slightfile(text)
    with pytest.raises(ManifestError) as caught:
        image.prepare()
    assert str(caught.value).startswith(reason)


def test_unknown_field_is_logged(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    image.slightfile("colour = 1\n" + VERSION + HTTP)
    image.prepare()
    assert "/slightfile.toml:1:1: colour: unknown field, of no effect" in caplog.text


def test_program_where_a_server_is_asked_for(program: Image) -> None:
    (program.root / "app.wasm").write_bytes(NO_INIT)
    with pytest.raises(ModuleError, match="exports no memory"):
        program.prepare()


def test_server_where_a_program_is_asked_for(image: Image) -> None:
    image.slightfile(VERSION + KV)
    with pytest.raises(ModuleError) as caught:
        image.prepare()
    assert str(caught.value) == (
        "/app.wasm: exports no function '_start' "
        '(a server wants resource = "http" in slightfile.toml)'
    )
    assert caught.value.exit_code == ExitCode.INVALID_MODULE


# Programs


def test_program_runs_to_its_end(program: Image) -> None:
    program.args = ("/app", "7")
    assert program.run_to_the_end() == 7
    assert program.stdout == (
        "argument /app\nargument 7\nerror 0 there is no key 'key'\ngot value\n"
    )
    assert (program.temporary / "store" / "key").read_text() == "value"


def test_program_that_traps(program: Image, caplog: pytest.LogCaptureFixture) -> None:
    program.args = ("/app", "trap")
    assert program.run_to_the_end() == 134
    assert "/app.wasm failed: " in caplog.text


def test_program_is_cut_off(program: Image, caplog: pytest.LogCaptureFixture) -> None:
    program.args = ("/app", "sleep")
    assert program.run_to_the_end(stop=True) == 143
    assert "/app.wasm is cut off: the app stops" in caplog.text


def test_program_of_an_app_with_http_that_serves_nothing(program: Image) -> None:
    program.slightfile(VERSION + KV + HTTP)
    assert program.run_to_the_end() == 0


def test_store_that_is_not_there(program: Image) -> None:
    program.slightfile(VERSION)
    assert program.run_to_the_end() == 0
    assert program.stdout.endswith(
        "error 0 slightfile.toml has no keyvalue capability named 'store'\n"
    )


# Settings


def test_defaults() -> None:
    assert Settings.load({}, 64 << 20) == Settings(
        address=None,
        drain_seconds=10.0,
        request_seconds=60.0,
        max_body_bytes=128 << 20,
        max_requests=1000,
        max_memory_bytes=64 << 20,
    )


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("SLIGHT_HTTP_LISTEN_ADDR", "[::]:80", "address", ("::", 80)),
        ("SLIGHT_HTTP_REQUEST_TIMEOUT_SECONDS", "0", "request_seconds", None),
        ("SLIGHT_SHUTDOWN_TIMEOUT_SECONDS", "2.5", "drain_seconds", 2.5),
        ("SLIGHT_HTTP_MAX_BODY_BYTES", "10", "max_body_bytes", 10),
        ("SLIGHT_MAX_INSTANCE_COUNT", "7", "max_requests", 7),
        ("SLIGHT_MAX_INSTANCE_MEMORY", "65536", "max_memory_bytes", 65_536),
    ],
)
def test_setting(name: str, text: str, field: str, value: object) -> None:
    assert getattr(Settings.load({name: text}, None), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SLIGHT_HTTP_LISTEN_ADDR", "localhost:80"),
        ("SLIGHT_MAX_INSTANCE_COUNT", "0"),
        ("SLIGHT_MAX_INSTANCE_MEMORY", "many"),
    ],
)
def test_setting_that_cannot_be_used(name: str, text: str) -> None:
    with pytest.raises(SettingError, match=f"^{name}='{text}' is not "):
        Settings.load({name: text}, None)


def test_every_backend_has_a_file() -> None:
    """A module beside the others that is no resource's would never be found."""
    directory = Path(capabilities.__file__).parent
    for path in directory.glob("*/*.py"):
        if "\nclass Backend(" in path.read_text():
            assert f"{path.parent.name}.{path.stem}" in RESOURCES
