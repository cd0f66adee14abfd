"""Apps described by manifest version 2 or a lock file: served, or refused with these words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.errors import ManifestError, ShimError
from containerd_shimkit.testing.http import fetch

Image = Any  # of conftest.py
GUESTS = Path(__file__).parent / "guests"

MANIFEST = """\
spin_manifest_version = 2
[application]
name = "test"
version = "1.2.3"
[application.trigger.http]
base = "/base"

[[trigger.http]]
route = "/probe/..."
component = "probe"

[[trigger.http]]
route = "/user/:user_id/:what"
component = "probe"

[[trigger.http]]
route = "/private"
component = "probe"

[[trigger.http]]
route = "/wagi/:name/..."
component = "both"
executor = { type = "wagi" }

[[trigger.http]]
route = "/static"
[trigger.http.static_response]
status_code = 418
headers = { X-Kind = "tea", content-length = "9", transfer-encoding = "chunked" }
body = "pot"

[component.probe]
source = "probe.wasm"
environment = { GREETING = "hello" }

[component.both]
source = "wagi_probe.wasm"
"""


@pytest.fixture
def app(image: Image) -> Image:
    for guest in ("probe", "wagi_probe"):
        shutil.copyfile(GUESTS / f"{guest}.wasm", image.root / f"{guest}.wasm")
    image.manifest(MANIFEST)
    return image


def test_one_component_behind_several_routes(app: Image) -> None:
    async def main(port: int) -> None:
        assert (await fetch(port, "/base/probe/env?name=GREETING")).text == "hello"
        assert (await fetch(port, "/base/user/7/env?name=GREETING")).status == 404
        assert (await fetch(port, "/probe/env")).status == 404

    app.run(main)


def test_static_response(app: Image) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, "/base/static")
        assert (response.status, response.text, response["x-kind"]) == (418, "pot", "tea")
        assert response["content-length"] == "3"
        assert "transfer-encoding" not in response

    app.run(main)


def test_private_route_is_not_reached_from_outside(app: Image) -> None:
    app.manifest(MANIFEST.replace('"/private"', "{ private = true }"))

    async def main(port: int) -> None:
        assert (await fetch(port, "/base/private")).status == 404
        assert (await fetch(port, "/base/probe/echo", method="POST", body=b"x")).text == "x"

    app.run(main)


def test_component_called_in_two_ways(app: Image) -> None:
    """The executor belongs to the trigger: the module has to fit each of them."""
    app.manifest(MANIFEST + '[[trigger.http]]\nroute = "/spin"\ncomponent = "both"\n')
    with pytest.raises(ShimError, match=r'wants executor = \{ type = "wagi" \}'):
        app.prepare()


def test_only_called_components_are_compiled(app: Image) -> None:
    app.manifest(MANIFEST + '[component.idle]\nsource = "not-there.wasm"\n')
    app.prepare()


def test_retained_components_only(app: Image) -> None:
    (app.root / "wagi_probe.wasm").unlink()

    async def main(port: int) -> None:
        assert (await fetch(port, "/base/probe/env?name=GREETING")).text == "hello"
        assert (await fetch(port, "/base/wagi/me")).status == 404
        assert (await fetch(port, "/base/static")).status == 404

    app.run(main, SPIN_COMPONENTS_TO_RETAIN="probe")


def test_unknown_component_to_retain(app: Image) -> None:
    with pytest.raises(ShimError, match=r"has no component 'prob'; did you mean `probe`\?"):
        app.prepare(SPIN_COMPONENTS_TO_RETAIN="prob")


DIGEST = "sha256:" + "0" * 64
LOCKED = {
    "spin_lock_version": 0,
    "metadata": {"name": "locked", "triggers": {"http": {}}},
    "triggers": [
        {
            "id": "t",
            "trigger_type": "http",
            "trigger_config": {"component": "probe", "route": "/..."},
        }
    ],
    "components": [
        {
            "id": "probe",
            "source": {"content_type": "application/wasm", "source": "file:///probe.wasm"},
            "files": [{"source": "file:///data", "path": "/shown"}],
        }
    ],
}


@pytest.mark.parametrize("name", ["spin.json", "spin.lock"])
def test_locked_app(app: Image, name: str) -> None:
    (app.root / "spin.toml").unlink()
    (app.root / name).write_text(json.dumps(LOCKED))
    (app.root / "data").mkdir()
    (app.root / "data" / "page.txt").write_text("page")

    async def main(port: int) -> None:
        assert (await fetch(port, "/file?path=/shown/page.txt")).text == "page"
        assert (await fetch(port, "/.well-known/spin/info")).text == '{\n  "name": "locked"\n}'

    app.run(main)


def test_manifest_comes_before_the_locked_form(app: Image) -> None:
    (app.root / "spin.lock").write_text("{")
    app.prepare()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("source",),
            {"content_type": "", "digest": "sha256:" + "0" * 64},
            "source is in the lock",
        ),
        (("files",), [{"inline": "eA==", "path": "/x"}], "its content is in the locked app"),
    ],
)
def test_content_outside_of_the_image_is_refused(
    app: Image, path: tuple[str], value: Any, message: str
) -> None:
    (app.root / "spin.toml").unlink()
    changed = json.loads(json.dumps(LOCKED))
    changed["components"][0][path[0]] = value
    (app.root / "spin.lock").write_text(json.dumps(changed))
    with pytest.raises(ManifestError, match=message):
        app.prepare()


def test_runtime_configuration(app: Image) -> None:
    """It limits the memory of instances, unless the environment does."""
    (app.root / "runtime-config.toml").write_text("max_instance_memory = 1048576")
    assert app.prepare().settings.max_memory_bytes == 1 << 20
    limited = app.prepare(SPIN_MAX_INSTANCE_MEMORY=str(2 << 20))
    assert limited.settings.max_memory_bytes == 2 << 20


def test_fault_in_the_runtime_configuration(app: Image) -> None:
    (app.root / "runtime-config.toml").write_text("stat_dir = '/data'")
    with pytest.raises(ManifestError, match=r"^/runtime-config.toml:1:1: unknown field `stat_dir`"):
        app.prepare()
