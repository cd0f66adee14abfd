"""Isolating one container: the stage and the init, in the order of their steps.

The shim forks the **stage**, which stays in the host's mount namespace:

1. opens the container's standard streams, makes its cgroup, opens its namespaces and what the
   engine may import from;
2. enters them, forks the init, reports its pid;
3. compiles what the init asks for, until the init has all it needs; ends.

The **init**, process 1 of the container:

1. joins the cgroup, makes its mount namespace, mounts rootfs and volumes, changes into them;
2. gives up what the container may not have: devices, capabilities, its user;
3. only now reads the image: the engine prepares the app;
4. waits for Start, then serves.

Both report to the shim over one socket pair, a JSON object a packet: ``pid``, ``created``,
``prepared``, ``ready``, or ``failed``. Either end being closed means that the other is gone.
Neither process ever returns.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from containerd_shimkit import init, pause
from containerd_shimkit.certificates import open_bundle
from containerd_shimkit.compiling import serve_compiler
from containerd_shimkit.control import Control, SandboxRequest
from containerd_shimkit.engine import Engine
from containerd_shimkit.errors import (
    BundleError,
    ExitCode,
    InvalidArgumentError,
    SandboxError,
)
from containerd_shimkit.forked import close_all_but, reset_signals, run_and_exit
from containerd_shimkit.guest_files import open_image_mount
from containerd_shimkit.hooks import CREATING, run_hooks, state_of
from containerd_shimkit.importing import end_imports
from containerd_shimkit.late import ModuleTrees
from containerd_shimkit.linux import capabilities, process
from containerd_shimkit.linux.cgroups import Cgroup, join, open_cgroup
from containerd_shimkit.linux.constants import CLONE_NEWPID
from containerd_shimkit.linux.lsm import ProcessLabels, check_mount_label
from containerd_shimkit.linux.mounts import clone_readonly, mount_rootfs
from containerd_shimkit.linux.names import use_files_and_dns
from containerd_shimkit.linux.namespaces import NamespacePlan
from containerd_shimkit.linux.paths import make_in_root
from containerd_shimkit.linux.program import is_program
from containerd_shimkit.linux.rootfs import Rootfs, has_own_dev, isolate_propagation
from containerd_shimkit.linux.seccomp import SeccompFilter, seccomp_available
from containerd_shimkit.linux.syscalls import (
    set_dumpable,
    set_no_new_privs,
    set_pdeathsig,
    setns,
    step,
)
from containerd_shimkit.oci.spec import Spec
from containerd_shimkit.runtime import ShimKind, cache_directory, cache_max_bytes
from containerd_shimkit.stdio import Stdio
from containerd_shimkit.wasm.cache import CompiledModuleCache


def fork_stage(request: SandboxRequest, shim_end: socket.socket, our_end: socket.socket) -> int:
    """Fork the stage and return its pid. The caller closes ``our_end`` afterwards."""
    pid = os.fork()
    if pid == 0:
        run_and_exit(lambda control: _stage(request, control), our_end)
    return pid


# The stage


def _stage(request: SandboxRequest, control: Control) -> int:
    reset_signals()
    close_all_but(control.connection.fileno())
    set_pdeathsig(signal.SIGKILL)  # the shim is gone: nobody would start this container
    # Who shares the container's pid namespace must not reach the host's files by /proc/PID of ours.
    set_dumpable(False)
    os.setsid()
    stdio = Stdio(request.stdio, namespace=request.namespace, task_id=request.task_id)
    for number, descriptor in enumerate((stdio.stdin, stdio.stdout, stdio.stderr)):
        os.dup2(descriptor, number)
    stdio.close()

    spec = request.bundle.spec
    plan = NamespacePlan.open(spec.linux.namespaces)
    cache = _open_cache()
    warnings: list[str] = []
    trees = _open_trees(request, warnings)
    cgroup = _make_cgroup(request, warnings)
    try:
        own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        linux = spec.linux
        plan.enter_stage(linux.uid_mappings, linux.gid_mappings, linux.time_offsets)
        compiler_end, init_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            compiler_end.close()
            os.close(own_pids)
            cache.close()
            run_and_exit(
                lambda control: _init(request, control, plan, cgroup, init_end, trees, warnings),
                control.connection,
            )
    except BaseException:
        if cgroup is not None:
            with contextlib.suppress(SandboxError):
                cgroup.delete()
        raise
    init_end.close()
    # Of the trees this process keeps its descriptors to its end, as nobody waits for that: the last
    # one to be closed unmounts, which takes longer than all else about them.
    if cgroup is not None:
        cgroup.let_go()
    control.report("pid", pid=pid)
    control.connection.close()
    plan.close()
    # Only the init lives in the container's pid namespace; a compiler's process does not.
    setns(own_pids, CLONE_NEWPID)
    serve_compiler(compiler_end, cache)
    return 0


def _open_cache() -> CompiledModuleCache:
    """Open the cache so that whoever gets an entry cannot change it, not as root either."""
    directory = Path(cache_directory())
    with contextlib.suppress(OSError):  # then there is no cache: compiling says so, or does without
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        view = clone_readonly(str(directory))
        return CompiledModuleCache(directory, view, max_bytes=cache_max_bytes())
    return CompiledModuleCache(directory, max_bytes=cache_max_bytes())


def _open_trees(request: SandboxRequest, warnings: list[str]) -> ModuleTrees | None:
    """Open what the engine may import from while it prepares the app, if it is one that does."""
    try:
        engine: type[Engine] = request.kind.import_engine()
    except ImportError:
        return None  # the init says so
    if request.bundle.is_pause or not engine.imports_late:
        return None
    trees = ModuleTrees()
    if trees.problem:
        warnings.append(f"no module can be imported in the container: {trees.problem}")
    return trees


def _make_cgroup(request: SandboxRequest, warnings: list[str]) -> Cgroup | None:
    linux = request.bundle.spec.linux
    if not linux.cgroups_path:
        return None
    cgroup = open_cgroup(linux.cgroups_path, request.task_id)
    try:
        cgroup.create()
        warnings += cgroup.apply(linux.resources)
    except BaseException:
        with contextlib.suppress(SandboxError):
            cgroup.delete()
        raise
    return cgroup


# The init


def _init(
    request: SandboxRequest,
    control: Control,
    plan: NamespacePlan,
    cgroup: Cgroup | None,
    compiler: socket.socket,
    trees: ModuleTrees | None,
    warnings: list[str],
) -> int:
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    os.setsid()
    role = "pause" if request.bundle.is_pause else "engine"
    setproctitle(
        f"{request.kind.binary} {role} -namespace {request.namespace} -id {request.task_id}"
    )
    ca_bundle = None if request.bundle.is_pause else open_bundle()
    use_files_and_dns()
    end_imports()
    try:
        more_warnings, image_mount = _isolate(request, control, plan, cgroup)
    except OrdinaryCommand:
        control.report("ordinary")
        return 0
    control.report("created", warnings=warnings + more_warnings)
    if request.bundle.is_pause:
        compiler.close()
        return pause.run(request, control)
    files = init.OpenedFiles(ca_bundle, image_mount)
    return init.run(request, control, _new_engine(request.kind), compiler, files, trees)


def _leave(number: int, _frame: Any) -> None:
    """Before Start, a signal that asks for an end gets it at once."""
    os._exit(128 + number)


class OrdinaryCommand(Exception):
    """The container's command is a program of its image: there is nothing here for an engine."""


def _isolate(
    request: SandboxRequest, control: Control, plan: NamespacePlan, cgroup: Cgroup | None
) -> tuple[list[str], int | None]:
    """Take every step that makes this process a container.

    Return what had to be left out, and the image mount of a guest's container.
    """
    spec = request.bundle.spec
    linux, user = spec.linux, spec.process.user
    warnings: list[str] = []
    sets, left_out = capabilities.plan_sets(spec.process.capabilities)
    warnings += left_out
    if spec.process.oom_score_adj is not None:
        warnings += process.set_oom_score_adj(spec.process.oom_score_adj)
    if cgroup is not None:
        join(cgroup.procs_fds())
        cgroup.let_go()
    plan.enter_init()
    process.leave_session_keyring()

    path = str(request.bundle.rootfs)
    isolate_propagation(path, linux.rootfs_propagation)
    mount_rootfs(request.rootfs, path)
    rootfs = Rootfs(path, linux.mount_label)
    if not request.bundle.is_pause and is_program(
        rootfs.fd, spec.process.args[0], spec.process.environment, spec.process.cwd
    ):
        raise OrdinaryCommand
    if request.terminal:
        raise InvalidArgumentError("a WebAssembly container has no terminal: run it without -t")
    _refuse_unsupported(spec, plan)
    labels = ProcessLabels.open(spec.process.apparmor_profile, spec.process.selinux_label)
    check_mount_label(linux.mount_label)
    cgroup_mounts = cgroup.mounts() if cgroup is not None else None
    rootfs.mount_all(spec.mounts, str(request.bundle.path), cgroup_mounts)
    if has_own_dev(spec.mounts):  # else it is the host's, and has what it has
        rootfs.create_devices(linux.devices)
    with step(f'make directory "{spec.process.cwd}"'):  # as runc does for a missing one
        os.close(make_in_root(rootfs.fd, spec.process.cwd, directory=True))
    process.apply_sysctls(linux.sysctl, plan.types)
    rootfs.make_readonly(linux.readonly_paths)
    rootfs.mask(linux.masked_paths)
    process.apply_names(spec.hostname, spec.domainname)
    plan.close()
    if spec.hooks:
        _run_hooks(request, control)
    rootfs.pivot(readonly=spec.root.readonly, propagation=linux.rootfs_propagation)
    image_mount = None if request.bundle.is_pause else open_image_mount()

    warnings += process.apply_rlimits(spec.process.rlimits)
    if spec.process.scheduler is not None:
        process.apply_scheduler(spec.process.scheduler)
    if (priority := spec.process.io_priority) is not None:
        process.apply_io_priority(priority.name, priority.level)
    if linux.personality:
        process.apply_personality(linux.personality)
    seccomp = _seccomp_filter(spec)
    capabilities.limit_bounding(sets)
    if seccomp is not None and not spec.process.no_new_privileges:
        seccomp.load()  # needs CAP_SYS_ADMIN, which is about to go
    process.apply_user(user.uid, user.gid, user.additional_gids, user.umask)
    capabilities.apply_sets(capabilities.as_if_executed(sets, user.uid))
    labels.apply()  # what a profile allows under no_new_privs depends on the kernel's version
    if spec.process.no_new_privileges:
        set_no_new_privs()
        if seccomp is not None:
            seccomp.load()
    with step(f'change to directory "{spec.process.cwd}"'):
        os.chdir(spec.process.cwd)
    return warnings, image_mount


def _refuse_unsupported(spec: Spec, plan: NamespacePlan) -> None:
    """Raise BundleError for what would be left undone in silence."""
    fields = [f'id mapping of mount "{m.destination}"' for m in spec.mounts if m.id_mapped]
    fields += spec.linux.unsupported
    if fields:
        names = ", ".join(fields)
        raise BundleError(f"{names}: not supported for a container with a guest")
    if (spec.hostname or spec.domainname) and "uts" not in plan.types:
        raise BundleError("hostname and domainname need a uts namespace: they would be the host's")


def _run_hooks(request: SandboxRequest, control: Control) -> None:
    """Run those that come before pivot_root: the shim's, then ours."""
    if not control.let_shim_run_hooks():
        os._exit(ExitCode.INTERNAL)  # the shim knows why
    state = state_of(request.bundle, request.task_id, CREATING, os.getpid())
    run_hooks("createContainer", request.bundle.spec.hooks.get("createContainer", ()), state)


def _seccomp_filter(spec: Spec) -> SeccompFilter | None:
    if not spec.linux.seccomp or not seccomp_available():  # the shim and ``init`` tell
        return None
    return SeccompFilter(spec.linux.seccomp)


def _new_engine(kind: ShimKind) -> Engine:
    try:
        engine: Engine = kind.import_engine()()
    except ImportError as exc:
        raise SandboxError(f"load the {kind.name} engine", str(exc)) from exc
    return engine
