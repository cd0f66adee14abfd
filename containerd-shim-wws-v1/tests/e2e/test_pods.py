"""Wws apps in pods, as kubelet makes them."""

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
CONFIG = """\
version = "1"
[vars]
GREETING = "$GREETING"
[data.kv]
namespace = "n"
"""


running = running_fixture("wws")


@pytest.fixture(scope="module")
def image(running: Cri) -> str:
    wasm = (GUESTS / "probe.wasm").read_bytes()
    files = [ImageFile("probe.toml", CONFIG.encode()), ImageFile("probe.wasm", wasm)]
    return running.import_image("docker.io/library/cri-wws:latest", files, ["/"])


def run_app(cri: Cri, pod: Pod, image: str, volume: Path | None = None) -> Web:
    address = free_address()
    env = {"WWS_HTTP_LISTEN_ADDR": f"{address[0]}:{address[1]}", "GREETING": "hi"}
    mounts = []
    if volume is not None:
        env["WWS_KV"] = "directory:/kv"
        mounts.append((volume, "/kv", False))
    container = cri.create_container(pod, image, "web", env=env, mounts=mounts)
    cri.start_container(container)
    return Web(container, address)


def test_pod_answers_drains_and_leaves_nothing(cri: Cri, image: str) -> None:
    pod = cri.run_pod(handler="wws", host_network=True)
    app = run_app(cri, pod, image)
    assert app.get("/probe?mode=environment") == (200, "- probe.wasm\nGREETING=hi\n")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(app.get, "/probe?mode=sleep&ms=2000")
        assert app.get("/.well-known/wws/health") == (200, "OK")
        cri.stop_container(app.id, 20)
        assert slow.result() == (200, "slept")
    assert cri.exit_code(app.id) == 0
    cri.stop_pod(pod)
    cri.remove_pod(pod)


def test_values_are_kept_on_a_volume(cri: Cri, image: str, tmp_path: Path) -> None:
    store = tmp_path / "kv"
    store.mkdir()
    (store / "n.json").write_text('{"k": "from before"}')
    pod = cri.run_pod(handler="wws", host_network=True)
    app = run_app(cri, pod, image, store)
    assert app.get("/probe?mode=kv&key=l&value=2") == (200, '{"k":"from before"}')
    assert app.get("/probe?mode=kv&key=m&value=3") == (200, '{"k":"from before","l":"2"}')
