"""A node to install on: a root of its own, a real containerd, and what restarts it.

The root is an overlay over this machine's, in a mount namespace of its own, so that nothing is
changed here; what a distribution of Kubernetes does around its containerd is done by ``NodeRoot``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from containerd_shimkit.testing.containerd import Containerd
from containerd_shimkit.testing.layouts import Layout

SHIMS: Final = ("spin", "slight", "wws")
WATCHED: Final = (
    *("etc", "snap", "usr/local/bin", "usr/local/libexec", "usr/local/sbin"),
    *("var/lib/k0s", "var/lib/rancher", "var/snap"),
)
STATE: Final = "var/lib/containerd-wasm-shims"

MAKE_ROOT: Final = r"""
set -e
mount -t tmpfs -o "size=$SIZE" none "$PLACE"
mkdir "$PLACE/upper" "$PLACE/work" "$PLACE/root"
mount -t overlay -o "lowerdir=/,upperdir=$PLACE/upper,workdir=$PLACE/work" none "$PLACE/root"
for directory in proc sys dev run tmp; do
    mount --rbind "/$directory" "$PLACE/root/$directory"
done
cd "$PLACE/root"
mkdir .before
pivot_root . .before
umount -l /.before
rmdir /.before
echo ready
exec sleep infinity
"""

ASK: Final = """\
#!/bin/sh
echo "{name} $*" >{directory}/request
read -r answer <{directory}/answer
[ "$answer" = done ] || {{ echo "Job for $* failed." >&2; exit 1; }}
"""


class NodeContainerd(Containerd):
    """A containerd that lives in a node's root and reads the node's configuration."""

    node: NodeRoot

    def _configuration(self) -> str:
        """Return what a node has: nothing of our shims."""
        whole = super()._configuration()
        return whole[: whole.index('[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.')]

    def environment(self) -> dict[str, str]:
        whole = super().environment()
        for name in ("CONTAINERD_WASM_SHIMS_ROOT", "CONTAINERD_WASM_SHIMS_CACHE"):
            del whole[name]
        return whole

    def _prepare(self) -> None:
        super()._prepare()
        self.node.lay_out((self.directory / "config.toml").read_text())


@dataclass
class NodeRoot:
    """The node."""

    pid: int
    """Of a process in its mount namespace."""
    place: Path
    layout: Layout
    program: str
    """containerd's."""
    restarts: list[str] = field(default_factory=list)
    """The commands by which it was restarted."""
    may_restart: bool = True
    daemon: NodeContainerd = field(init=False)
    base: str = ""

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.pid}/root")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def read(self, path: str) -> str | None:
        file = self.root / path
        return file.read_text() if file.exists() else None

    def prepare(self) -> None:
        """Take away what this machine has itself, and add what the distribution has."""
        for path in (STATE, "etc/containerd", *(f"usr/local/bin/{binary(s)}" for s in SHIMS)):
            shutil.rmtree(self.root / path, ignore_errors=True)
            (self.root / path).unlink(missing_ok=True)
        for name in ("systemctl", "snap"):
            text = ASK.format(name=name, directory=self.place)
            self.write(f"usr/local/sbin/{name}", text, 0o755)
        for path in (self.layout.containerd, "usr/local/sbin/containerd"):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).symlink_to(self.program)
        for path, text in self.layout.files.items():
            self.write(path, text)

    def lay_out(self, base: str) -> None:
        """Write containerd's configuration where the distribution has it."""
        self.base = base + self.layout.runtimes
        self.layout.lay_out(self, self.base)

    def serve_restarts(self) -> None:
        """Do what systemd and snapd do, until told to stop."""
        while True:
            with (self.place / "request").open() as request:
                command = request.read().strip()
            if command == "stop":
                return
            self.restarts.append(command)
            try:
                if self.may_restart:
                    self.layout.before_start(self, self.base)
                    self.daemon.restart()
                answer = "done" if self.may_restart else "no"
            except Exception as exc:
                answer = f"failed: {exc}".replace("\n", " ")
            with (self.place / "answer").open("w") as pipe:
                pipe.write(f"{answer}\n")

    def snapshot(self) -> dict[str, str]:
        """Return what every file of the node is, by path, as far as an installer may change it."""
        found = {}
        for top in WATCHED:
            for path in sorted((self.root / top).rglob("*")):
                name = str(path.relative_to(self.root))
                found[name] = _describe(path)
        if (self.root / STATE).exists():
            found[STATE] = "there"
        return found


def _describe(path: Path) -> str:
    status = path.lstat()
    text = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
    if stat.S_ISLNK(status.st_mode):
        return f"{text} {path.readlink()}"
    if stat.S_ISREG(status.st_mode) and status.st_size < 1 << 20:
        return f"{text} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return f"{text} {status.st_size if stat.S_ISREG(status.st_mode) else ''}"


def binary(shim: str) -> str:
    return f"containerd-shim-{shim}-v1"


@contextmanager
def running_node(
    directory: Path, layout: Layout, program: str, size: str = "1g", *, own_network: bool = False
) -> Iterator[NodeRoot]:
    """Yield a node with a running containerd. program: containerd's.  size: of its disk."""
    place = directory / "node"
    place.mkdir(parents=True)
    environment = os.environ | {"PLACE": str(place), "SIZE": size}
    network = ["--net"] if own_network else []
    command = ["unshare", *network, "--mount", "--propagation", "private", "sh", "-c", MAKE_ROOT]
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as keeper,
        ExitStack() as stack,
    ):
        stack.callback(keeper.kill)
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"ready\n"
        talk = directory / "talk"
        talk.mkdir()
        node = NodeRoot(keeper.pid, talk, layout, str(Path(shutil.which(program) or program)))
        for name in ("request", "answer"):
            os.mkfifo(talk / name)
        node.prepare()
        netns = Path(f"/proc/{node.pid}/ns/net") if own_network else None
        node.daemon = _daemon(directory, node, netns)
        server = threading.Thread(target=node.serve_restarts)
        server.start()
        stack.callback(server.join)
        stack.callback((talk / "request").write_text, "stop")
        with node.daemon:
            yield node


def _daemon(directory: Path, node: NodeRoot, netns: Path | None) -> NodeContainerd:
    programs = directory / "programs"
    programs.mkdir()
    (programs / "none").mkdir()
    real = Path(node.program)
    for name in ("ctr", "containerd-shim-runc-v2"):
        if (real.parent / name).exists():
            (programs / name).symlink_to(real.parent / name)
    wrapper = programs / "containerd"
    config = node.layout.read
    wrapper.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = --version ]; then exec {real} --version; fi\n'
        f"exec nsenter --target {node.pid} --mount -- {real} --config /{config}\n"
    )
    wrapper.chmod(0o755)
    daemon = NodeContainerd(
        directory / "containerd",
        shim_dir=programs / "none",
        binary=str(wrapper),
        cri=True,
        netns=netns,
    )
    daemon.node = node
    return daemon
