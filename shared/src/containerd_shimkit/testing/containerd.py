"""A private, real containerd: its own root, state, sockets and configuration.

Nothing of it is shared with a containerd of the machine, and ``stop`` leaves nothing of it behind.
The sockets live in a short directory of their own, because the path of a unix socket may be at
most 107 bytes long and working copies may lie deep; ``<directory>/run`` is a link to it.

``restart`` and ``kill`` end the daemon only: tasks and shims survive it, as on any node.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Self

from containerd_shimkit.testing.leftovers import (
    Process,
    cgroup_directories,
    find_processes,
    mount_points,
    open_files,
)

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PAUSE_IMAGE = "docker.io/library/cri-pause:latest"
"""The image of pods' pause containers, which a test that runs pods has to import."""

START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0

_MNT_DETACH = 2  # <sys/mount.h>

# Neither the first two, which write to /opt and /run/nri, nor snapshotters that need a file system
# or a device of their own are any use here. Ids that a version does not know are ignored.
_DISABLED = [
    "io.containerd.internal.v1.opt",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
]
_CRI = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
]


class ContainerdError(Exception):
    """The daemon did not start, or not in time; the message ends with its last log lines."""


class Containerd:
    """One daemon below ``directory``, usable again and again between ``start`` and ``stop``."""

    def __init__(
        self,
        directory: Path,
        *,
        shim_dir: Path,
        env: Mapping[str, str] = MappingProxyType({}),
        binary: str = "containerd",
        cri: bool = False,
        sandboxer: str = "podsandbox",
        systemd_cgroup: bool = False,
        netns: Path | None = None,
        namespace: str | None = None,
        shims_cache: Path | None = None,
        shims_root: Path | None = None,
        debug: bool = False,
    ) -> None:
        """Prepare a daemon; nothing is written before ``start``.

        shim_dir: where it finds the shims; the first entry of its PATH.
        env: more variables for it, and so for every shim it starts.
        cri: with the plugin for pods; sandboxer, systemd_cgroup: what that is told of our shims.
        netns: the network namespace that is the daemon's host network; None is this one.
        namespace: the default of ``ctr``; a random one keeps cgroups of parallel tests apart.
        shims_cache, shims_root: compiled modules, unpacked binaries; to be shared by many daemons.
        debug: with lines of that level in the log, the shims' too.
        """
        self.directory = directory.resolve()
        self.namespace = namespace or f"cw-{secrets.token_hex(4)}"
        self.version = ""
        self.leftovers: list[Process] = []
        """The processes that ``stop`` had to kill itself."""
        self._shim_dir = shim_dir.resolve()
        self._env = dict(env)
        self._binary = binary
        self._cri = cri
        self._sandboxer = sandboxer
        self.systemd_cgroup = systemd_cgroup
        self.netns = netns
        self._shims_cache = shims_cache or self.directory / "cache"
        self._shims_root = shims_root or self.directory / "shims"
        self._debug = debug
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: Path | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """The path of the gRPC socket; the ttrpc one has ``.ttrpc`` appended."""
        return str(self.runtime_dir / "containerd.sock")

    @property
    def runtime_dir(self) -> Path:
        """The short directory with all sockets."""
        if self._sockets is None:
            raise ContainerdError("containerd was not started")
        return self._sockets

    @property
    def shims_runtime_dir(self) -> Path:
        return self.runtime_dir / "shims"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def runc_dir(self) -> Path:
        """Where runc keeps the state of this namespace's containers, whichever containerd it is."""
        return Path("/run/containerd/runc", self.namespace)

    @property
    def cni_directory(self) -> Path:
        """Where CRI looks for the configuration of the pods' network; it takes one at any time."""
        return self.directory / "cni"

    @property
    def log_file(self) -> Path:
        return self.directory / "containerd.log"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ContainerdError("containerd is not running")
        return self._process.pid

    @property
    def scope(self) -> list[str]:
        """What the paths and environments of all that belongs to this daemon mention."""
        # With a separator at the end: /x/test-1 is not part of /x/test-10.
        return [
            f"{self.directory}/",
            f"{self.runtime_dir}/",
            f"/{self.namespace}",
            f"-namespace {self.namespace} ",  # the engine of a container, even without its shim
        ]

    def bundle(self, task_id: str, namespace: str | None = None) -> Path:
        """Return the directory that ``start`` runs in for this task."""
        tasks = self.state_dir / "io.containerd.runtime.v2.task"
        return tasks / (namespace or self.namespace) / task_id

    def open_files(self) -> int:
        """Return how many descriptors the daemon has open."""
        return open_files(self.pid)

    # Life

    def start(self) -> None:
        """Start the daemon and return when it accepts connections.

        Raises ContainerdError if there is no such program, it ends, or it is not ready in 30 s.
        """
        if self._process is not None:
            raise ContainerdError("containerd is running already")
        if self._sockets is None:
            self._prepare()
        configuration = str(self.directory / "config.toml")
        command = [*in_netns(self.netns), self._binary, "--config", configuration]
        with self.log_file.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.environment(),
                    cwd=self.directory,
                    start_new_session=True,  # Ctrl-C at the terminal is for us, not for it
                )
            except OSError as exc:
                raise ContainerdError(f"cannot run {self._binary}: {exc.strerror}") from exc
        self._wait_until_ready(time.monotonic() + START_TIMEOUT)

    def terminate(self) -> None:
        """End the daemon as an upgrade would; shims and tasks go on."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the daemon as a crash would; shims and tasks go on."""
        self._end(signal.SIGKILL)

    def restart(self, binary: str = "") -> None:
        """End the daemon and start it again. binary: the program from now on; else the same."""
        self.terminate()
        if binary:
            self._binary, self.version = binary, ""
        self.start()

    def stop(self) -> None:
        """End everything that was started and remove all but the log. May be called twice."""
        if self._sockets is None:
            return
        shim_sockets = self._shim_sockets()
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                self._remove_containers()
        if self._process is not None:
            self.terminate()
        self._remove_leftovers(shim_sockets)
        self._sockets = None

    def environment(self) -> dict[str, str]:
        """Return the variables the daemon and its shims are started with."""
        return {
            "PATH": f"{self._shim_dir}:{self._own_path()}{SYSTEM_PATH}",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "CONTAINERD_WASM_SHIMS_RUN": str(self.shims_runtime_dir),
            "CONTAINERD_WASM_SHIMS_CACHE": str(self._shims_cache),
            "CONTAINERD_WASM_SHIMS_ROOT": str(self._shims_root),
        } | self._env

    def _own_path(self) -> str:
        # A containerd of one's own has its own runc shim beside it; an older one does not fit.
        return f"{Path(self._binary).resolve().parent}:" if "/" in self._binary else ""

    # The client

    def ctr(
        self,
        *args: str,
        check: bool = True,
        timeout: float = 60,
        namespace: str | None = None,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``ctr`` against this daemon to its end.

        With ``check``, CalledProcessError carries what it printed as a note.
        """
        result = subprocess.run(
            self.ctr_command(*args, namespace=namespace),
            check=False,
            timeout=timeout,
            env=self._ctr_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            **({"stdin": subprocess.DEVNULL} if input is None else {"input": input}),
        )
        if check:
            try:
                result.check_returncode()
            except subprocess.CalledProcessError as exc:
                exc.add_note(f"ctr printed: {result.stdout}{result.stderr}")
                raise
        return result

    def popen_ctr(
        self,
        *args: str,
        namespace: str | None = None,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = subprocess.PIPE,
        stderr: int | IO[Any] | None = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """Start ``ctr`` in a session of its own; whoever calls this closes it."""
        return subprocess.Popen(
            self.ctr_command(*args, namespace=namespace),
            env=self._ctr_environment(),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def ctr_command(self, *args: str, namespace: str | None = None) -> list[str]:
        beside = Path(self._binary).parent / "ctr"
        program = str(beside) if "/" in self._binary and beside.exists() else "ctr"
        return [program, "--address", self.address, "-n", namespace or self.namespace, *args]

    def import_image(self, path: Path, namespace: str | None = None) -> None:
        """Import an OCI or docker archive and unpack it."""
        self.ctr("image", "import", *self.local_option(), str(path), namespace=namespace)

    def local_option(self) -> list[str]:
        """Return what has ``ctr`` import or pull an image itself, whatever its platform.

        From 2.0 on it leaves that to the daemon's transfer service, which unpacks for its own.
        """
        return ["--local"] if self._major_version() >= 2 else []

    def log(self) -> str:
        """Return all that the daemon has logged, the shims' own lines among it."""
        return self.log_file.read_text(errors="replace")

    # Inside

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._adopt_leftovers()
        base = Path("/run") if os.geteuid() == 0 else None
        self._sockets = Path(tempfile.mkdtemp(prefix="cw-", dir=base))
        (self.directory / "run").symlink_to(self._sockets)
        (self.directory / "namespace").write_text(self.namespace)
        (self.directory / "config.toml").write_text(self._configuration())
        self.shims_runtime_dir.mkdir(mode=0o700)
        self._shims_cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._shims_root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _adopt_leftovers(self) -> None:
        """Clear away what a predecessor in this directory left when it was killed."""
        link = self.directory / "run"
        if link.is_symlink() and link.readlink().name.startswith("cw-"):
            self._sockets = link.readlink()
            own = self.namespace
            with contextlib.suppress(FileNotFoundError):
                self.namespace = (self.directory / "namespace").read_text()
            self._remove_leftovers(self._shim_sockets())
            self.namespace = own
            self._sockets = None

    def _configuration(self) -> str:
        disabled = _DISABLED + ([] if self._cri else _CRI)
        lines = [
            "version = 2",
            f'root = "{self.directory / "root"}"',
            f'state = "{self.state_dir}"',
            f"disabled_plugins = [{', '.join(map(_quote, disabled))}]",
            "[grpc]",
            f"address = {_quote(self.address)}",
            "[ttrpc]",
            f"address = {_quote(self.address + '.ttrpc')}",
            *(["[debug]", 'level = "debug"'] if self._debug else []),
        ]
        return "\n".join(lines + (self._cri_configuration() if self._cri else [])) + "\n"

    def _cri_configuration(self) -> list[str]:
        cri = '[plugins."io.containerd.grpc.v1.cri"'
        lines = [
            f"{cri}]",
            f"sandbox_image = {_quote(PAUSE_IMAGE)}",
            "restrict_oom_score_adj = true",  # where CAP_SYS_RESOURCE is missing, pods fail without
            "netns_mounts_under_state_dir = true",
            'stream_server_port = "0"',
            f"{cri}.cni]",
            'bin_dir = "/usr/lib/cni"',
            f'conf_dir = "{self.cni_directory}"',
        ]
        # Up to 1.7 naming one replaces the default list, and without its runc CRI does not start.
        lines += [f"{cri}.containerd.runtimes.runc]", 'runtime_type = "io.containerd.runc.v2"']
        for name in ("spin", "slight", "wws"):
            lines += [
                f"{cri}.containerd.runtimes.{name}]",
                f'runtime_type = "io.containerd.{name}.v1"',
                f"sandboxer = {_quote(self._sandboxer)}",  # 1.6 has no choice and no such key
            ]
            if self.systemd_cgroup:
                lines += [f"{cri}.containerd.runtimes.{name}.options]", "SystemdCgroup = true"]
        return lines

    def _wait_until_ready(self, deadline: float) -> None:
        process = self._process
        assert process is not None
        while not _accepts(self.address):
            if process.poll() is not None or time.monotonic() > deadline:
                reason = "is not ready" if process.returncode is None else "has ended"
                tail = "\n".join(self.log().splitlines()[-8:])
                self.kill()
                raise ContainerdError(f"{self._binary} {reason}; its log ends with\n{tail}")
            time.sleep(0.01)

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            raise ContainerdError("containerd is not running")
        process.send_signal(number)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None

    def _ctr_environment(self) -> dict[str, str]:
        # Where the file system cannot carry an overlay, as inside of a container, copies do.
        overlay = 'skip loading plugin \\"io.containerd.snapshotter.v1.overlayfs' not in self.log()
        snapshotter = {} if overlay else {"CONTAINERD_SNAPSHOTTER": "native"}
        return {"PATH": SYSTEM_PATH, "HOME": "/root", "LANG": "C.UTF-8"} | snapshotter

    def _major_version(self) -> int:
        if not self.version:
            output = subprocess.check_output([self._binary, "--version"], text=True)
            match = re.search(r"\bv?(\d+\.\d+\.\d+)", output)
            self.version = match[1] if match else "0"
        return int(self.version.split(".")[0])

    def _remove_containers(self) -> None:
        for namespace in self.ctr("namespaces", "list", "-q").stdout.split():

            def each(*args: str, namespace: str = namespace) -> list[str]:
                return self.ctr(*args, namespace=namespace, check=False, timeout=15).stdout.split()

            for task in each("tasks", "list", "-q"):
                each("tasks", "delete", "--force", task)
            for container in each("containers", "list", "-q"):
                each("containers", "delete", container)

    def _remove_leftovers(self, shim_sockets: Sequence[Path]) -> None:
        """Without a daemon: processes, then mounts, then cgroups, then files."""
        self.leftovers = self._kill_processes()
        below = (f"{self.directory}/", f"{self.runtime_dir}/")
        for mount in reversed(mount_points()):
            if mount.startswith(below):
                _unmount(mount.split(" ")[0])
        for cgroup in reversed(cgroup_directories()):
            if self._is_ours(cgroup):
                with contextlib.suppress(OSError):
                    cgroup.rmdir()
        for path in shim_sockets:
            path.unlink(missing_ok=True)
        for bundle in self.state_dir.glob("io.containerd.runtime.v2.task/*/*"):
            runc_state = self.runc_dir.parent / bundle.parent.name / bundle.name
            shutil.rmtree(runc_state, ignore_errors=True)
        if self._owns_namespace():
            shutil.rmtree(self.runc_dir, ignore_errors=True)
        names = ("root", "state", "cache", "shims", "cni")
        for directory in (self.runtime_dir, *(self.directory / name for name in names)):
            shutil.rmtree(directory, ignore_errors=True)
        for name in ("run", "namespace", "config.toml"):
            (self.directory / name).unlink(missing_ok=True)

    def _shim_sockets(self) -> list[Path]:
        """Where the shims of other projects listen: a directory all containerds of a machine share.

        A shim that is killed leaves its socket there, and only its bundle says which one.
        """
        texts = [
            file.read_text()
            for name in ("address", "bootstrap.json")
            for file in self.state_dir.glob(f"*/*/*/{name}")
        ]
        return [Path(p) for text in texts for p in re.findall(r"/run/containerd/s/[0-9a-f]+", text)]

    def _kill_processes(self) -> list[Process]:
        """Ask, then force: a zygote or shim that is told to end has things to remove."""
        killed = []
        for number, seconds in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
            found = self._own_processes()
            if number is signal.SIGTERM:
                killed = found
            _signal_and_wait(found, number, seconds)
        return killed

    def _own_processes(self) -> list[Process]:
        members = {
            int(pid)
            for cgroup in cgroup_directories()
            if self._is_ours(cgroup)
            for pid in _members(cgroup)
        }
        words = [f"{self.directory}/", f"{self.runtime_dir}/"]
        found = {process.pid: process for process in find_processes(words)}
        for pid in members - found.keys():
            found[pid] = Process(pid, 0, 0, "in a cgroup of ours", "")
        return list(found.values())

    def _is_ours(self, cgroup: Path) -> bool:
        # A namespace with a name others use too is not ours to clear.
        return self._owns_namespace() and self.namespace in cgroup.parts

    def _owns_namespace(self) -> bool:
        return self.namespace.startswith("cw-")


def in_netns(netns: Path | None) -> list[str]:
    """Return what to put before a command, which takes its place: the pid stays the same."""
    # Not `ip netns exec`, which makes a mount namespace too.
    return [] if netns is None else ["nsenter", f"--net={netns}"]


def _accepts(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        return client.connect_ex(address) == 0


def _signal_and_wait(processes: Sequence[Process], number: signal.Signals, seconds: float) -> None:
    """Signal each process and wait until they are gone, at most ``seconds`` in all."""
    poll = select.poll()
    waiting: list[int] = []
    for process in processes:
        # A pidfd: the number may have been given to another process since.
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(process.pid)
            waiting.append(descriptor)
            poll.register(descriptor, select.POLLIN)
            signal.pidfd_send_signal(descriptor, number)
    deadline = time.monotonic() + seconds
    gone = 0
    while gone < len(waiting) and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            gone += 1
    for descriptor in waiting:
        os.close(descriptor)


def _members(cgroup: Path) -> list[str]:
    try:
        return (cgroup / "cgroup.procs").read_text().split()
    except OSError:
        return []


def _unmount(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.umount2(os.fsencode(path), _MNT_DETACH)


def _quote(text: str) -> str:
    return f'"{text}"'
