"""The modules of ``images/spin`` in apps that other manifests describe, through containerd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import App, Node

pytestmark = [pytest.mark.root, pytest.mark.containerd]

MODULES = {
    "hello": "hello/hello.wasm",
    "c-hello": "c-hello/c_hello.wasm",
    "wagi-hello": "wagi-hello/wagi_hello.wasm",
}
GUESTS = Path(__file__).parents[1] / "guests"
FILES_MANIFEST = """\
spin_manifest_version = "1"
name = "files"
version = "1.0.0"
trigger = { type = "http", base = "/" }

[[component]]
id = "probe"
source = "probe.wasm"
files = FILES
[component.trigger]
route = "/..."
"""
ABOUT = "c-hello/static/about.txt"

VERSION_2 = f"""\
spin_manifest_version = 2

[application]
name = "hello"
version = "0.2.0"

[[trigger.http]]
route = "/hello"
component = "hello"

[[trigger.http]]
route = "/user/:id/hello"
component = "hello"

[[trigger.http]]
route = "/c-hello/..."
component = "c-hello"

[[trigger.http]]
route = "/wagi-hello/:name"
component = {{ source = "{MODULES["wagi-hello"]}" }}
executor = {{ type = "wagi" }}

[[trigger.http]]
route = {{ private = true }}
component = "hello"

[[trigger.http]]
route = "/static"
static_response = {{ status_code = 404, body = "nobody" }}

[component.hello]
source = "{MODULES["hello"]}"
allowed_outbound_hosts = ["https://*.example.com"]

[component.c-hello]
source = "{MODULES["c-hello"]}"
files = [{{ source = "{ABOUT}", destination = "/about.txt" }}]
"""

LOCKED: dict[str, Any] = {
    "spin_lock_version": 0,
    "metadata": {"name": "hello", "triggers": {"http": {}}},
    "triggers": [
        {
            "id": "one",
            "trigger_type": "http",
            "trigger_config": {"component": "c-hello", "route": "/c-hello/..."},
        }
    ],
    "components": [
        {
            "id": "c-hello",
            "source": {
                "content_type": "application/wasm",
                "source": f"file:///{MODULES['c-hello']}",
            },
            "files": [{"source": "file:///c-hello/static", "path": "/"}],
        }
    ],
}


@pytest.fixture
def modules(pytestconfig: pytest.Config) -> list[ImageFile]:
    directory = pytestconfig.rootpath / "images" / "spin"
    files = [Path(name) for name in (*MODULES.values(), ABOUT)]
    return [ImageFile(str(file), (directory / file).read_bytes()) for file in files]


def image_of(node: Node, modules: list[ImageFile], name: str, manifest: str) -> str:
    return node.image([ImageFile(name, manifest.encode()), *modules, ImageFile("tmp/.keep")])


def answers(app: App, *paths: str) -> dict[str, tuple[int, str]]:
    return {path: (answer.status, answer.text) for path in paths for answer in [app.get(path)]}


def test_version_2(node: Node, modules: list[ImageFile]) -> None:
    app = node.run(image_of(node, modules, "spin.toml", VERSION_2))
    hello = "Hello world from Spin!"
    assert answers(app, "/hello", "/hello/", "/user/7/hello", "/user/hello", "/static") == {
        "/hello": (200, hello),
        "/hello/": (200, hello),
        "/user/7/hello": (200, hello),
        "/user/hello": (404, ""),
        "/static": (404, "nobody"),
    }
    assert "is a file of the image" in app.get("/c-hello/about").text
    wagi = app.get("/wagi-hello/me?a=b").text
    assert "QUERY_STRING=a=b" in wagi
    assert app.stop() == 0


def test_some_of_the_components(node: Node, modules: list[ImageFile]) -> None:
    image = image_of(node, modules, "spin.toml", VERSION_2)
    app = node.run(image, env={"SPIN_COMPONENTS_TO_RETAIN": "c-hello"})
    assert app.get("/c-hello").status == 200
    assert answers(app, "/hello", "/static") == {"/hello": (404, ""), "/static": (404, "")}
    assert app.stop() == 0


@pytest.mark.parametrize("name", ["spin.json", "spin.lock"])
def test_locked_app(node: Node, modules: list[ImageFile], name: str) -> None:
    app = node.run(image_of(node, modules, name, json.dumps(LOCKED)))
    assert app.get("/c-hello").text == "Hello world from C!"
    assert "is a file of the image" in app.get("/c-hello/about").text
    assert app.stop() == 0


@pytest.mark.parametrize(
    ("files", "place"),
    [
        ('[{ source = ".", destination = "/" }]', ""),
        ('[{ source = ".", destination = "/all" }]', "/all"),
        ('["**/*"]', ""),
    ],
)
def test_files_of_a_whole_image_are_not_the_kernels(node: Node, files: str, place: str) -> None:
    """Where they could be the image has its own, which is what the guest may see."""
    manifest = FILES_MANIFEST.replace("FILES", files)
    image = node.image(
        [
            ImageFile("spin.toml", manifest.encode()),
            ImageFile("probe.wasm", (GUESTS / "probe.wasm").read_bytes()),
            ImageFile("text/hello.txt", b"hello"),
        ]
    )
    app = node.run(image)
    assert app.get(f"/file?path={place}/text/hello.txt").body == b"hello"
    for path in ("proc/self/maps", "proc/self/fd/0", "proc/version", "sys/kernel/uevent_seqnum"):
        assert app.get(f"/file?path={place}/{path}").status == 404, path
    assert app.stop() == 0


def test_files_of_the_kernel_are_refused(node: Node) -> None:
    manifest = FILES_MANIFEST.replace("FILES", '[{ source = "proc/self", destination = "/x" }]')
    image = node.image(
        [
            ImageFile("spin.toml", manifest.encode()),
            ImageFile("probe.wasm", (GUESTS / "probe.wasm").read_bytes()),
        ]
    )
    refusal = node.run_refused(image)
    assert refusal.exit_code == 78
    assert "source `proc/self` is the kernel's, not the image's" in refusal.log
