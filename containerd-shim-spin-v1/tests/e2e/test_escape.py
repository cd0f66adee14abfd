"""A guest that tries to get out of its container, and its engine as the host sees it."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from containerd_shimkit.certificates import BUNDLES
from containerd_shimkit.linux.constants import CAPABILITIES
from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import App, Node

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUEST = Path(__file__).parents[1] / "guests" / "escape.wasm"
MANIFEST = """\
spin_manifest_version = "1"
name = "escape"
version = "1.0.0"
trigger = { type = "http", base = "/" }

[[component]]
id = "escape"
source = "escape.wasm"
environment = { GREETING = "from the manifest" }
files = [{ source = "volume", destination = "/volume" }]
[component.trigger]
route = "/..."
"""
LINKS = {
    "link-absolute": "/spin.toml",
    "link-up": "../spin.toml",
    "link-chain": "link-up",
    "link-directory": "/proc/self",
    "link-proc": "/proc/self/environ",
    "link-self": "/proc/self/fd/0",
    "link-loop": "link-loop",
    "link-dangling": "../made",
    "directory/link-up": "../../spin.toml",
}
DEVICES = {
    "memory": (stat.S_IFCHR, 1, 1),
    "kmsg": (stat.S_IFCHR, 1, 11),
    "tty": (stat.S_IFCHR, 4, 1),
}
ALLOWED = {"read file"}
"""What the guest may do: it shows that the others do not fail for a reason of their own."""

ATTEMPTS = 69
"""Without those on the paths that a test gives."""


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A directory in which another container has left all it could think of."""
    directory = tmp_path / "volume"
    (directory / "directory").mkdir(parents=True)
    (directory / "file").write_text("of the volume")
    for name, target in LINKS.items():
        (directory / name).symlink_to(target)
    for name, (kind, major, minor) in DEVICES.items():
        os.mknod(directory / name, kind | 0o666, os.makedev(major, minor))
    os.mknod(directory / "disk", stat.S_IFBLK | 0o666, Path("/").stat().st_dev)
    # By a descriptor: the path of a socket has to be short.
    where = os.open(directory, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{where}/socket")
    os.close(where)
    return directory


def run_guest(node: Node, volume: Path, *options: str) -> App:
    files = {"spin.toml": MANIFEST.encode(), "escape.wasm": GUEST.read_bytes(), "volume/x": b""}
    image = node.image([ImageFile(name, content) for name, content in files.items()])
    mount = f"type=bind,src={volume},dst=/volume,options=rbind:rw"
    return node.run(image, "--mount", mount, *options)


def attempts_of(app: App, paths: Sequence[str] = ()) -> dict[str, str]:
    """Return how each attempt ended. paths: of the host, tried as well."""
    answer = app.get("/", method="POST", body="\n".join(paths).encode())
    assert answer.status == 200, app.log
    lines = [line.rpartition(": ") for line in answer.text.splitlines()]
    return {what: how for what, _, how in lines}


def contents_of(directory: Path) -> dict[str, tuple[int, int]]:
    """Return mode and time of change of each file."""
    found = {file.name: file.lstat() for file in directory.rglob("*")}
    return {name: (status.st_mode, status.st_mtime_ns) for name, status in found.items()}


# The guest


def test_every_attempt_fails(node: Node, volume: Path) -> None:
    other, app = run_guest(node, volume), run_guest(node, volume)
    paths = [
        "/etc/hostname",
        "/proc/1/environ",
        node.daemon.address,
        f"{node.daemon.bundle(other.id)}/rootfs/spin.toml",
        f"/proc/{other.pid}/root/spin.toml",
        f"/proc/{app.shim_pid}/environ",
    ]
    before = contents_of(volume)
    attempts = attempts_of(app, paths)
    assert {what for what, how in attempts.items() if how == "success"} == ALLOWED, attempts
    assert len(attempts) == ATTEMPTS + 2 * len(paths)
    assert contents_of(volume) == before
    # Nor has it left anything for the next instance.
    assert attempts_of(app, paths) == attempts
    assert app.stop() == other.stop() == 0


@pytest.mark.parametrize("name", [*DEVICES, "disk"])
def test_device_in_a_volume_is_out_of_reach(node: Node, volume: Path, name: str) -> None:
    """By the kernel's device rules: the guest itself may open whatever is in its directory."""
    attempts = attempts_of(run_guest(node, volume))
    assert attempts[f"read {name}"] == "Operation not permitted"


def test_device_in_a_volume_is_there_if_the_spec_allows_it(node: Node, volume: Path) -> None:
    attempts = attempts_of(run_guest(node, volume, "--privileged"))
    # It is open. What reading gives depends on the next record: that, or an error of its own.
    assert attempts["read kmsg"] != "Operation not permitted"


def test_environment_is_the_manifests(node: Node, volume: Path) -> None:
    app = run_guest(node, volume)
    assert app.get("/environment").text == "GREETING=from the manifest\n"
    # Nor does the kernel show what containerd's was.
    assert Path(f"/proc/{app.pid}/environ").read_bytes().strip(b"\0") == b""


# The engine


def test_engine_has_what_the_spec_gives_it(node: Node, volume: Path) -> None:
    app = run_guest(node, volume)
    assert app.get("/read?file").text == "of the volume"
    config = json.loads((app.bundle / "config.json").read_text())
    given = mask_of(config["process"]["capabilities"]["bounding"])
    status = status_of(app.pid)
    sets = {name: int(status[f"Cap{name}"], 16) for name in ("Eff", "Prm", "Bnd", "Inh", "Amb")}
    assert sets == {"Eff": given, "Prm": given, "Bnd": given, "Inh": 0, "Amb": 0}
    assert status["NoNewPrivs"] == "1"
    cgroups = Path(f"/proc/{app.pid}/cgroup").read_text().splitlines()
    assert any(line.endswith(f"/{app.id}") for line in cgroups)


def test_engine_shares_no_namespace_but_the_network_it_is_given(node: Node, volume: Path) -> None:
    app = run_guest(node, volume)
    kinds = ("pid", "ipc", "uts", "mnt", "net")
    shared = {kind for kind in kinds if same_namespace(kind, app.pid, app.shim_pid)}
    assert shared == {"net"}  # --net-host


def test_engine_sees_nothing_of_the_hosts_files(node: Node, volume: Path) -> None:
    app = run_guest(node, volume)
    lines = Path(f"/proc/{app.pid}/mountinfo").read_text().splitlines()
    host = Path("/").stat().st_dev
    device = f"{os.major(host)}:{os.minor(host)}"
    points = {fields[4] for fields in map(str.split, lines) if fields[2] == device}
    assert points == {"/volume", "/etc/hosts", "/etc/resolv.conf"}  # as ctr mounts them
    descriptors = {str(fd.readlink()): fd for fd in Path(f"/proc/{app.pid}/fd").iterdir()}
    files = {link for link in descriptors if link.startswith("/")}
    compiled = {link for link in files if link.endswith(".cwasm")}
    # Python keeps /dev/urandom open where the C library it was built with has no getrandom, and
    # libffi the program it is linked to.
    (python,) = {link for link in files if "/bin/python3" in link}
    # The node's certificates, which the image has none of; the image and the volume, for guests.
    allowed = {"/dev/urandom", python, *map(os.path.realpath, BUNDLES), "/", "/volume"}
    assert files - compiled - allowed == {"/dev/null", f"{app.log_file}"}
    # Shared by all containers of the image; the engine cannot write to it by any name.
    assert len(compiled) == 1
    with pytest.raises(OSError, match="Read-only file system"):
        os.open(descriptors[compiled.pop()], os.O_RDWR)


def mask_of(capabilities: Sequence[str]) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in capabilities)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def same_namespace(kind: str, first: int, second: int) -> bool:
    links = [Path(f"/proc/{pid}/ns/{kind}").readlink() for pid in (first, second)]
    return links[0] == links[1]
