"""Slight apps in pods, as kubelet makes them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.cri import Cri, Pod
from containerd_shimkit.testing.pods import Web
from containerd_shimkit.testing.shim_nodes import cri, running_fixture

__all__ = ["cri"]  # a fixture

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUESTS = Path(__file__).parents[1] / "guests"
SLIGHTFILE = """\
specversion = "0.2"
[[capability]]
resource = "http"
name = "api"
[[capability]]
resource = "keyvalue.filesystem"
name = "*"
[[capability]]
resource = "configs.envvars"
name = "env"
"""


running = running_fixture("slight")


@pytest.fixture(scope="module")
def image(running: Cri) -> str:
    wasm = (GUESTS / "probe.wasm").read_bytes()
    files = [ImageFile("slightfile.toml", SLIGHTFILE.encode()), ImageFile("app.wasm", wasm)]
    return running.import_image("docker.io/library/cri-slight:latest", files, ["/"])


def run_app(cri: Cri, pod: Pod, image: str, volume: Path | None = None) -> Web:
    address = free_address()
    env = {"SLIGHT_HTTP_LISTEN_ADDR": f"{address[0]}:{address[1]}", "GREETING": "hi"}
    mounts = [] if volume is None else [(volume, "/tmp", False)]
    container = cri.create_container(pod, image, "web", env=env, mounts=mounts)
    cri.start_container(container)
    return Web(container, address)


def test_pod_answers_drains_and_leaves_nothing(cri: Cri, image: str) -> None:
    pod = cri.run_pod(handler="slight", host_network=True)
    app = run_app(cri, pod, image)
    assert app.get("/config/GREETING") == (200, "hi")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(app.get, "/sleep/2000")
        assert app.get("/counter") == (200, "1")
        cri.stop_container(app.id, 20)
        assert slow.result() == (200, "2000")
    assert cri.exit_code(app.id) == 0
    cri.stop_pod(pod)
    cri.remove_pod(pod)


def test_values_are_kept_on_a_volume(cri: Cri, image: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "key").write_text("from before")
    pod = cri.run_pod(handler="slight", host_network=True)
    app = run_app(cri, pod, image, tmp_path)
    assert app.get("/kv/store/key") == (200, "from before")
    assert app.get("/kv/store") == (200, "key\n")
