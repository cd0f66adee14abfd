"""The node installer on nodes of every distribution's layout, with real containerds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from containerd_shimkit.testing.api_server import ApiServer
from containerd_shimkit.testing.apps import eventually, free_address
from containerd_shimkit.testing.cri import Cri
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD, chosen_versions
from containerd_shimkit.testing.layouts import LAYOUTS
from containerd_shimkit.testing.node_root import SHIMS, STATE, NodeRoot, binary
from containerd_shimkit.testing.pods import run_sidecar, run_web

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.timeout(240)]

MakeNode = Callable[..., NodeRoot]
Install = Callable[..., subprocess.CompletedProcess[str]]


def layouts() -> list[object]:
    """Return each layout with one of the containerds, in turn; the plainest with both.

    What differs between containerds is in shared/tests/node.
    """
    versions = chosen_versions()
    pairs = [(versions[i % len(versions)], layout) for i, layout in enumerate(LAYOUTS)]
    pairs += [(version, "debian") for version in versions[1:]]
    return [pytest.param(*pair, id="-".join(pair)) for pair in pairs]


@pytest.mark.parametrize(("containerd_binary", "layout"), layouts(), indirect=["containerd_binary"])
def test_installed_twice_and_taken_away(make_node: MakeNode, install: Install, layout: str) -> None:
    node = make_node(layout)
    before = node.snapshot()

    done = install(node)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert node.restarts == [node.layout.restart]
    for shim in SHIMS:
        assert (node.root / "usr/local/bin" / binary(shim)).stat().st_mode & 0o7777 == 0o755
        assert f"io.containerd.{shim}.v1" in (node.read(node.layout.written) or "")
    installed = node.snapshot()

    again = install(node)
    assert (again.returncode, again.stderr) == (0, "")
    assert "nothing to change" in again.stdout
    assert node.restarts == [node.layout.restart]
    assert node.snapshot() == installed

    undone = install(node, "uninstall")
    assert (undone.returncode, undone.stderr) == (0, "")
    assert node.restarts == [node.layout.restart] * 2
    assert node.snapshot() == before
    assert not node.daemon.shims_runtime_dir.exists()

    if layout == "debian":
        assert install(node, "uninstall").returncode == 0
        assert node.restarts == [node.layout.restart] * 2
        assert node.snapshot() == before


@pytest.mark.parametrize("layout", ["debian", "k3s"])
@ON_EACH_CONTAINERD
def test_pods_on_a_node_that_was_installed(
    make_node: MakeNode, install: Install, tmp_path: Path, pytestconfig: pytest.Config, layout: str
) -> None:
    """As long as they run the shims stay. Of k3s' runtimes some are k3s' own, with options."""
    node = make_node(layout)
    assert install(node).returncode == 0
    archive = pytestconfig.rootpath / "dist/images/spin.tar"
    pods = tmp_path / "pods"
    pods.mkdir()
    with Cri(node.daemon, pods) as cri, cri.leaving_nothing():
        busybox = cri.import_busybox()
        node.daemon.import_image(archive, "k8s.io")
        cri.wait_for_image("docker.io/library/wasmtest_spin:latest")
        pod = cri.run_pod(handler="spin", host_network=True)
        web = run_web(cri, pod, "docker.io/library/wasmtest_spin:latest")
        assert web.get("/hello")[0] == 200
        other = cri.run_pod(handler="slight", host_network=True)
        assert cri.is_running(run_sidecar(cri, other, busybox))
        refused = install(node, "uninstall")
        assert refused.returncode == 1
        assert "pods still run with these shims (2): delete them first" in refused.stderr
        assert web.get("/hello")[0] == 200
    assert install(node, "uninstall").returncode == 0
    assert not (node.root / STATE).exists()


@pytest.mark.xdist_group("zygote")  # where the binary is built
def test_newer_shims_while_pods_run(
    make_node: MakeNode,
    install: Install,
    tmp_path: Path,
    shim_dir: Path,
    newer_binary: Path,
    pytestconfig: pytest.Config,
) -> None:
    """Nothing but the file changes: neither configuration nor containerd's process."""
    node = make_node("debian")
    before = node.snapshot()
    source, pods = tmp_path / "source", tmp_path / "pods"
    source.mkdir()
    pods.mkdir()
    for shim in SHIMS:
        (source / binary(shim)).symlink_to(shim_dir / binary(shim))
    assert install(node, SOURCE=str(source)).returncode == 0
    image = "docker.io/library/wasmtest_spin:latest"
    with Cri(node.daemon, pods) as cri, cri.leaving_nothing():
        cri.import_busybox()
        node.daemon.import_image(pytestconfig.rootpath / "dist/images/spin.tar", "k8s.io")
        cri.wait_for_image(image)
        pod = cri.run_pod(handler="spin", host_network=True)
        web = run_web(cri, pod, image)

        (source / binary("spin")).unlink()
        (source / binary("spin")).symlink_to(newer_binary)
        done = install(node, SOURCE=str(source))
        assert (done.returncode, done.stderr) == (0, "")
        assert f"/usr/local/bin/{binary('spin')} is written" in done.stdout
        assert binary("slight") not in done.stdout
        assert node.restarts == [node.layout.restart]
        assert (node.root / "usr/local/bin" / binary("spin")).read_bytes() == (
            newer_binary.read_bytes()
        )
        assert web.get("/hello")[0] == 200
        assert run_web(cri, pod, image, "again").get("/hello")[0] == 200
        other = cri.run_pod(handler="spin", host_network=True)
        assert run_web(cri, other, image).get("/hello")[0] == 200
    assert install(node, "uninstall", SOURCE=str(source)).returncode == 0
    assert node.snapshot() == before


def test_newer_shims_that_are_not_ready(
    make_node: MakeNode, install: Install, tmp_path: Path, shim_dir: Path
) -> None:
    """The older ones come back."""
    node = make_node("debian")
    assert install(node).returncode == 0
    before = node.snapshot()
    source = tmp_path / "source"
    source.mkdir()
    for shim in SHIMS:
        (source / binary(shim)).symlink_to(shim_dir / binary(shim))
    (source / binary("slight")).unlink()
    (source / binary("slight")).write_text('#!/bin/sh\n[ "$1" = -v ]\n')
    failed = install(node, SOURCE=str(source), WAIT_SECONDS="1")
    assert failed.returncode == 1
    assert "this node is not ready for slight apps" in failed.stderr
    assert node.snapshot() == before
    assert node.restarts == [node.layout.restart]


@ON_EACH_CONTAINERD
def test_configuration_that_cannot_be_read(make_node: MakeNode, install: Install) -> None:
    node = make_node("kubeadm")
    file = node.layout.written
    node.write(file, f"{node.read(file)}\n[plugins\n")
    before = node.snapshot()
    failed = install(node)
    assert failed.returncode == 1
    assert f"/{file} is not TOML" in failed.stdout
    assert failed.stderr == "node-installer: containerd was not told of the shims\n"
    assert node.snapshot() == before
    assert node.restarts == []


def test_name_that_is_taken(make_node: MakeNode, install: Install) -> None:
    """All three or none."""
    node = make_node("kubeadm")
    file = node.layout.written
    table = '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.wws]'
    node.write(file, f'{node.read(file)}{table}\n  runtime_type = "io.containerd.wws.v2"\n')
    before = node.snapshot()
    failed = install(node)
    assert failed.returncode == 1
    assert 'runtime "wws" is io.containerd.wws.v2 already' in failed.stdout
    assert node.snapshot() == before
    assert install(node, SHIMS="spin slight").returncode == 0


@pytest.mark.parametrize("left", [1 << 20, 40 << 20], ids=["nothing", "one binary"])
def test_full_disk(make_node: MakeNode, install: Install, left: int) -> None:
    node = make_node("kubeadm", size="64m")
    before = node.snapshot()
    fill(node.root / "var/tmp/filler", left)
    failed = install(node)
    assert failed.returncode == 1
    assert "node-installer: cannot write /usr/local/bin/.containerd-shim-" in failed.stderr
    assert node.snapshot() == before


def test_full_disk_of_a_node_to_be_cleared(make_node: MakeNode, install: Install) -> None:
    node = make_node("kubeadm", size="400m")
    before = node.snapshot()
    assert install(node).returncode == 0
    fill(node.root / "var/tmp/filler", 1 << 20)
    assert install(node, "uninstall").returncode == 0
    assert node.snapshot() == before


def fill(file: Path, left: int) -> None:
    """Leave so many bytes of a file system."""
    with file.open("wb", buffering=0) as filler:
        while True:
            status = subprocess.check_output(["stat", "-f", "-c", "%a %S", file], text=True)
            blocks, size = map(int, status.split())
            if (more := min(blocks * size - left, 1 << 20)) < 4096:
                return
            filler.write(b"x" * more)


def test_restart_that_fails(make_node: MakeNode, install: Install) -> None:
    node = make_node("kubeadm")
    before = node.snapshot()
    node.may_restart = False
    failed = install(node)
    assert failed.returncode == 1
    assert (
        "systemctl restart containerd failed: Job for restart containerd failed." in failed.stdout
    )
    assert failed.stderr.startswith("node-installer: containerd was not told of the shims\n")
    assert node.snapshot() == before


def test_interrupted_before_the_restart(
    make_node: MakeNode, install: Install, shim_dir: Path
) -> None:
    """What was written by then is read by containerd the next time."""
    node = make_node("kubeadm")
    enter = ["nsenter", "--target", str(node.pid), "--mount", "--"]
    others = ["--with", "slight", "--with", "wws"]
    written = subprocess.run(
        [*enter, "sh", "-c", "cat >/usr/local/bin/shim && chmod 755 /usr/local/bin/shim"],
        input=(shim_dir / binary("spin")).read_bytes(),
        check=True,
        timeout=60,
    )
    assert written.returncode == 0
    eventually(lambda: is_older(node), "containerd has run for two seconds")
    shim = [*enter, "/usr/local/bin/shim", "config", "--write", *others]
    done = subprocess.run(shim, check=True, capture_output=True, text=True, timeout=60)
    assert f"reads it when it is restarted: {node.layout.restart}" in done.stdout
    assert install(node).returncode == 0
    assert node.restarts == [node.layout.restart]


def is_older(node: NodeRoot) -> bool:
    """Whether containerd has started clearly before now: times of files have no more digits."""
    started = float(
        Path(f"/proc/{node.daemon.pid}/stat").read_text().rpartition(")")[2].split()[19]
    )
    up = float(Path("/proc/uptime").read_text().split()[0])
    return up - started / os.sysconf("SC_CLK_TCK") > 2


def test_other_shims_of_the_same_name_come_back(make_node: MakeNode, install: Install) -> None:
    node = make_node("kubeadm")
    node.write(f"usr/local/bin/{binary('spin')}", "#!/bin/sh\n", 0o755)
    before = node.snapshot()
    assert install(node).returncode == 0
    node.write(f"usr/local/bin/{binary('slight')}", "#!/bin/sh\n# an older one of ours", 0o755)
    assert install(node).returncode == 0
    assert install(node, "uninstall").returncode == 0
    assert node.snapshot() == before


def test_directory_is_the_first_that_can_be_written(make_node: MakeNode, install: Install) -> None:
    """On nodes whose /usr is read-only."""
    node = make_node("kubeadm")
    enter = ["nsenter", "--target", str(node.pid), "--mount", "--"]
    for command in (
        ["mount", "--bind", "/usr/local/bin", "/usr/local/bin"],
        ["mount", "-o", "remount,bind,ro", "/usr/local/bin"],
    ):
        subprocess.run([*enter, *command], check=True, timeout=20)
    first = Path(node.daemon.environment()["PATH"].split(":")[0])
    assert install(node).returncode == 0
    assert sorted(path.name for path in first.iterdir()) == sorted(map(binary, SHIMS))
    assert install(node, "uninstall").returncode == 0
    assert list(first.iterdir()) == []
    failed = install(node, INSTALL_DIR="/usr/local/bin")
    assert failed.stderr == (
        "node-installer: /usr/local/bin is not a directory that can be written\n"
    )


# Labels


def test_labels(make_node: MakeNode, install: Install, api_server: ApiServer) -> None:
    node = make_node("kubeadm")
    assert install(node, SHIMS="spin wws").returncode == 0
    assert install(node, "uninstall").returncode == 0
    expected = [("true", ("installed", "spin", "wws")), (None, ("installed", *SHIMS))]
    for call, (value, names) in zip(api_server.calls, expected, strict=True):
        assert (call.method, call.path) == ("PATCH", "/api/v1/nodes/worker-1")
        assert call.headers["authorization"] == "Bearer secret-token"
        assert call.headers["content-type"] == "application/merge-patch+json"
        labels = {f"containerd-wasm-shims/{name}": value for name in names}
        assert json.loads(call.body) == {"metadata": {"labels": labels}}


def test_api_server_that_is_away(
    make_node: MakeNode, install: Install, api_server: ApiServer
) -> None:
    """The shims are installed; the pod starts again until the labels are there."""
    node = make_node("kubeadm")
    api_server.status = 403
    refused = install(node)
    assert refused.returncode == 3
    assert "error: 403" in refused.stderr
    assert "the node has no labels" in refused.stderr
    host, port = free_address()
    away = install(node, API_SERVER=f"http://{host}:{port}")
    assert away.returncode == 3
    assert "the node has no labels" in away.stderr
    assert "secret-token" not in refused.stderr + away.stderr
    for shim in SHIMS:
        assert (node.root / "usr/local/bin" / binary(shim)).exists()
    api_server.status = 200
    assert install(node).returncode == 0
    assert node.restarts == [node.layout.restart]


def test_container_that_waits_ends_when_told(pytestconfig: pytest.Config) -> None:
    script = pytestconfig.rootpath / "deployments/node-installer/install.sh"
    with subprocess.Popen(["/bin/sh", script, "wait"], start_new_session=True) as waiting:

        def children() -> list[str]:
            found = Path(f"/proc/{waiting.pid}/task/{waiting.pid}/children").read_text().split()
            return [pid for pid in found if name_of(pid) == "sleep"]

        eventually(children, "it waits")
        (sleeping,) = children()
        waiting.terminate()
        assert waiting.wait(20) == 0
        eventually(lambda: name_of(sleeping) != "sleep", "nothing is left of it")


def name_of(pid: str) -> str:
    file = Path(f"/proc/{pid}/comm")
    return file.read_text().strip() if file.exists() else ""
