"""Nodes with the Spin shim, and the images that most tests use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import App, Node, eventually, free_address
from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.cri import Cri, Pod, bridge_network
from containerd_shimkit.testing.fixtures import each_containerd, running_containerd
from containerd_shimkit.testing.leftovers import find_processes, open_files
from containerd_shimkit.testing.pods import PodImages, run_burst
from containerd_shimkit.testing.shim_nodes import (
    import_example,
    make_node,
    node,
    running_cri,
    session_nodes_fixture,
)

__all__ = ["node"]  # a fixture

CNI_PLUGINS = [Path("/usr/lib/cni", name) for name in ("bridge", "loopback", "portmap")]
GUESTS = Path(__file__).parents[1] / "guests"

PROBE_MANIFEST = """\
spin_manifest_version = "1"
name = "probe"
version = "1.0.0"
trigger = { type = "http", base = "/" }

[[component]]
id = "probe"
source = "probe.wasm"
environment = { GREETING = "from the manifest" }
[component.trigger]
route = "/..."

[[component]]
id = "wagi"
source = "wagi_probe.wasm"
[component.trigger]
route = "/wagi"
executor = { type = "wagi" }

[[component]]
id = "realloc-lies"
source = "realloc_lies.wasm"
[component.trigger]
route = "/realloc-lies"

[[component]]
id = "response-lies"
source = "response_lies.wasm"
[component.trigger]
route = "/response-lies"
"""
PROBE_GUESTS = ("probe.wasm", "wagi_probe.wasm", "realloc_lies.wasm", "response_lies.wasm")

POD_MANIFEST = """\
spin_manifest_version = "1"
name = "probe"
version = "1.0.0"
trigger = { type = "http", base = "/" }

[[component]]
id = "probe"
source = "probe.wasm"
FILES
[component.trigger]
route = "/..."
"""
VOLUMES = """\
files = [
  { source = "config", destination = "/config" },
  { source = "scratch", destination = "/scratch" },
]
"""


# Nodes


def probe_of(node: Node, user: str = "") -> str:
    guests = [ImageFile(name, (GUESTS / name).read_bytes()) for name in PROBE_GUESTS]
    return node.image([ImageFile("spin.toml", PROBE_MANIFEST.encode()), *guests], user)


def make_spin_node(daemon: Containerd, directory: Path, shim_dir: Path) -> Node:
    return make_node(daemon, directory, shim_dir, "spin", probe_of)


session_nodes = session_nodes_fixture(make_spin_node)


@pytest.fixture(scope="session")
def session_node(session_nodes: Callable[[str], Node], default_binary: str) -> Node:
    """One for all tests of a worker."""
    return session_nodes(default_binary)


@pytest.fixture
def own_node(
    tmp_path: Path, shim_dir: Path, shims_home: Path, containerd_binary: str
) -> Iterator[Node]:
    """A containerd for tests that restart it, or break what belongs to the node."""
    directory = tmp_path / "containerd"
    with running_containerd(directory, shim_dir, shims_home, binary=containerd_binary) as daemon:
        node = make_spin_node(daemon, tmp_path / "apps", shim_dir)
        with node.leaving_nothing():
            yield node


@pytest.fixture
def cold_node(tmp_path: Path, shim_dir: Path, shims_home: Path) -> Iterator[Node]:
    """Like ``own_node``, with a cache of compiled modules of its own."""
    home = tmp_path / "home"
    home.mkdir()
    (shims_home / "root").mkdir(exist_ok=True)
    (home / "root").symlink_to(shims_home / "root")
    with running_containerd(tmp_path / "containerd", shim_dir, home) as daemon:
        node = make_spin_node(daemon, tmp_path / "apps", shim_dir)
        with node.leaving_nothing():
            yield node


@pytest.fixture
def cache(tmp_path: Path, cold_node: Node) -> Path:
    """The cache of ``cold_node``, with entries in it."""
    return tmp_path / "home" / "cache"


# Images


@pytest.fixture
def probe_image(node: Node) -> str:
    """The guest that does what its path says at ``/...``, as a WAGI command at ``/wagi``."""
    return probe_of(node)


@pytest.fixture
def unprivileged_image(node: Node) -> str:
    """``probe_image`` with a user of its own."""
    return probe_of(node, "1000:1000")


@pytest.fixture
def own_image(own_node: Node) -> str:
    """``probe_image``, on ``own_node``."""
    return probe_of(own_node)


@pytest.fixture
def cold_image(cold_node: Node) -> str:
    """``probe_image``, on ``cold_node``."""
    return probe_of(cold_node)


@pytest.fixture
def probe_wasm() -> bytes:
    return (GUESTS / "probe.wasm").read_bytes()


@pytest.fixture
def probe(node: Node, probe_image: str) -> App:
    """A running container of ``probe_image``."""
    return node.run(probe_image)


@pytest.fixture
def example_image(node: Node, pytestconfig: pytest.Config) -> Callable[[str], str]:
    """Imports an image of ``images``, by its name, as ``make images`` writes it."""

    return partial(import_example, node, pytestconfig.rootpath)


@pytest.fixture
def hello_image(example_image: Callable[[str], str]) -> str:
    """The image of ``images/spin``."""
    return example_image("spin")


# Pods


def each_pod_maker() -> list[ParameterSet]:
    """Return version and sandboxer of each way in which pods are made."""
    found = [
        pytest.param((*each.values, "podsandbox"), id=each.id, marks=each.marks)
        for each in each_containerd("cri")
    ]
    if os.environ.get("TEST_CONTAINERD", "2.4") == "2.4":
        marks = pytest.mark.xdist_group("cri-shim")
        found.append(pytest.param(("2.4", "shim"), id="2.4-shim", marks=marks))
    return found


@pytest.fixture(scope="session", params=each_pod_maker())
def running(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shim_dir: Path,
    shims_home: Path,
) -> Iterator[Cri]:
    """A containerd with CRI of each version and sandboxer; all tests of one share it."""
    version, sandboxer = request.param
    with running_cri(
        *(tmp_path_factory.mktemp("cri"), request.config.rootpath, shim_dir, shims_home),
        *("spin", version),
        sandboxer=sandboxer,
        systemd_cgroup=os.environ.get("TEST_CGROUP_DRIVER") == "systemd",
    ) as cri:
        yield cri


@pytest.fixture(scope="session")
def import_images() -> Callable[[Cri], PodImages]:
    """Gives a containerd the images that pods are made of."""

    def image(cri: Cri, name: str, files: str) -> str:
        manifest = POD_MANIFEST.replace("FILES\n", files).encode()
        guest = ImageFile("probe.wasm", (GUESTS / "probe.wasm").read_bytes())
        reference = f"docker.io/library/cri-{name}:latest"
        return cri.import_image(reference, [ImageFile("spin.toml", manifest), guest], ["/"])

    def import_all(cri: Cri) -> PodImages:
        nothing = [ImageFile("nothing")]
        return PodImages(
            probe=image(cri, "probe", ""),
            reader=image(cri, "reader", VOLUMES),
            empty=cri.import_image("docker.io/library/cri-empty:latest", nothing, ["/"]),
            busybox=cri.import_busybox(),
        )

    return import_all


@pytest.fixture(scope="session")
def images(running: Cri, import_images: Callable[[Cri], PodImages]) -> PodImages:
    return import_images(running)


@pytest.fixture
def cri(running: Cri, images: PodImages) -> Iterator[Cri]:
    """What a test runs must be gone at its end."""
    with running.leaving_nothing():
        yield running


@pytest.fixture
def pod(cri: Cri) -> Pod:
    """A pod in the host's network, empty."""
    return cri.run_pod(handler="spin", host_network=True)


@pytest.fixture(scope="session")
def cni_plugins() -> None:
    """What puts pods into a network."""
    missing = [str(path) for path in CNI_PLUGINS if not path.exists()]
    missing += [name for name in ("ip", "iptables") if shutil.which(name) is None]
    if missing:
        packages = "containernetworking-plugins iproute2 iptables"
        pytest.skip(f"needs {' '.join(missing)}: apt-get install {packages}")


@pytest.fixture(scope="session")
def network(running: Cri, cni_plugins: None) -> Iterator[None]:
    """Addresses for the pods that are not in the host's network."""
    with bridge_network(running.daemon):
        eventually(running.network_ready, "CRI has a network")
        yield


# Many at once


@pytest.fixture
def burst(cri: Cri, images: PodImages, network: None) -> Callable[[int, bool], None]:
    """Make pods come and go together; what belongs to the node has no more open than before."""

    def open_now() -> dict[str, int]:
        zygotes = [p for p in find_processes(cri.daemon.scope) if " zygote " in p.command]
        (zygote,) = zygotes
        return {"containerd": cri.daemon.open_files(), "zygote": open_files(zygote.pid)}

    def run(count: int, host_network: bool) -> None:
        run_burst(cri, images.probe, 2, host_network=host_network)  # containerd opens its pools
        before = open_now()
        figures = run_burst(cri, images.probe, count, host_network=host_network)
        print(f"{count} pods on containerd {cri.daemon.version}: {figures}")

        def is_as_before() -> bool:
            after = open_now()
            assert all(after[name] <= before[name] for name in after), (before, after)
            return True

        eventually(is_as_before, "no descriptor is left open")

    return run


# Again and again


@pytest.fixture
def soak(own_node: Node, own_image: str) -> Callable[[int], None]:
    """Make containers come and go this many times; everything countable stays as it was."""

    def once(turn: int) -> None:
        task_id, address = own_node.new_id(), free_address()
        _, *command = own_node.run_command(own_image, task_id, address)
        own_node.daemon.ctr("container", "create", *command)
        own_node.daemon.ctr("task", "start", "-d", "--null-io", task_id)
        app = own_node.adopt(task_id, address)
        assert app.get("/echo", method="POST", body=b"x").body == b"x"
        killed = turn % 2 == 1
        assert app.stop("SIGKILL" if killed else "SIGTERM") == (137 if killed else 0)

    def count() -> dict[str, int]:
        # Removes at once what containerd would remove in a moment.
        own_node.daemon.ctr("leases", "create", "--id", "soak")
        own_node.daemon.ctr("leases", "delete", "--sync", "soak")
        machine = own_node.snapshot()
        (zygote,) = own_node.zygotes()
        directory = own_node.daemon.directory
        return {kind.name: len(getattr(machine, kind.name)) for kind in fields(machine)} | {
            "descriptors of containerd": own_node.daemon.open_files(),
            "descriptors of the zygote": open_files(zygote.pid),
            "files of containerd": sum(1 for _ in directory.rglob("*")),
        }

    def run(turns: int) -> None:
        for turn in range(4):  # containerd opens its databases and pools at the first use
            once(turn)
        before = count()
        for turn in range(turns):
            once(turn)

        def is_as_before() -> bool:
            after = count()
            more = {key: (before[key], after[key]) for key in after if after[key] > before[key]}
            assert not more, more  # before and after
            return True

        eventually(is_as_before)

    return run
