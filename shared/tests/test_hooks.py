"""Hooks of the spec, run for containers of a Task service."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.bootstrap import delete_task
from containerd_shimkit.errors import ShimError
from containerd_shimkit.hooks import run_hooks
from containerd_shimkit.linux.cgroups import open_cgroup
from containerd_shimkit.oci.spec import HOOKS, Hook
from containerd_shimkit.testing import BundleBuilder, in_clean_process, running_service

pytestmark = pytest.mark.root

DEADLINE = 20.0
SCRIPT = """\
#!/bin/sh
# NAME [COMMAND]: leave notes of how it is run beside it, then do what is asked.
cd "${0%/*}"
cat >"$1.state"
env >"$1.environment"
readlink /proc/self/ns/mnt /proc/self/ns/pid >"$1.namespaces"
echo "$1" >>order
eval "$2"
"""
INSIDE = "/hooks"
"""Where a container finds the script."""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """The directory of the script and of what it leaves."""
    directory = tmp_path / "hooks"
    directory.mkdir()
    (directory / "hook").write_text(SCRIPT)
    (directory / "hook").chmod(0o755)
    return directory


def entry(notes: Path, kind: str, command: str = "", **fields: Any) -> dict[str, Any]:
    path = INSIDE if kind == "startContainer" else str(notes)
    return {"path": f"{path}/hook", "args": [f"{path}/hook", kind, command], **fields}


def builder(
    tmp_path: Path, namespace: str, hooks: Mapping[str, Any], task_id: str = "c"
) -> BundleBuilder:
    """A container that has the host's shell, for what runs inside."""
    shell = ("/bin", "/lib", "/lib64", "/usr")
    sources = {INSIDE: tmp_path / "hooks", **{path: Path(path) for path in shell}}
    mounts = [
        {"destination": path, "source": str(source), "options": ["rbind", "rw"]}
        for path, source in sources.items()
        if source.exists()
    ]
    return BundleBuilder(
        tmp_path / task_id,
        task_id=task_id,
        namespace=namespace,
        mounts=mounts,
        annotations={"color": "green"},
        changes={"hooks": hooks},
    )


def order(notes: Path) -> list[str]:
    return (notes / "order").read_text().split()


def namespaces(pid: int | str) -> list[str]:
    return [str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in ("mnt", "pid")]


@in_clean_process
async def test_hooks_run_in_order_and_place(tmp_path: Path, namespace: str, notes: Path) -> None:
    async with running_service(namespace) as running:
        hooks = {kind: [entry(notes, kind)] for kind in HOOKS}
        pid = await running.create(builder(tmp_path, namespace, hooks))
        assert order(notes) == ["prestart", "createRuntime", "createContainer"]
        await running.start("c")
        assert order(notes)[3:] == ["startContainer", "poststart"]
        theirs = namespaces(pid)
        await running.kill("c")
        await running.wait("c")
        assert len(order(notes)) == 5
        await running.delete("c")
        assert order(notes)[5:] == ["poststop"]
    inside = {"createContainer", "startContainer"}
    for kind in HOOKS:
        expected = theirs if kind in inside else namespaces("self")
        assert (notes / f"{kind}.namespaces").read_text().split() == expected, kind


@in_clean_process
async def test_hook_reads_the_state(tmp_path: Path, namespace: str, notes: Path) -> None:
    async with running_service(namespace) as running:
        hooks = {kind: [entry(notes, kind)] for kind in HOOKS}
        bundle = builder(tmp_path, namespace, hooks)
        pid = await running.run(bundle)
        await running.remove("c")
    expected = {
        "prestart": ("creating", pid),
        "createRuntime": ("creating", pid),
        "createContainer": ("creating", 1),
        "startContainer": ("created", 1),
        "poststart": ("running", pid),
        "poststop": ("stopped", None),
    }
    for kind, (status, number) in expected.items():
        state = json.loads((notes / f"{kind}.state").read_text())
        assert (state.pop("status"), state.pop("pid", None)) == (status, number), kind
        assert state == {
            "ociVersion": "1.0.2-dev",
            "id": "c",
            "bundle": str(bundle.path),
            "annotations": {"color": "green"},
        }


@in_clean_process
async def test_hook_has_the_variables_it_lists(tmp_path: Path, namespace: str, notes: Path) -> None:
    os.environ["SECRET_OF_CONTAINERD"] = "s3cret"
    async with running_service(namespace) as running:
        kinds = ("createRuntime", "createContainer", "startContainer")
        env = ["PATH=/usr/bin:/bin", "GREETING=a=b"]
        await running.run(
            builder(tmp_path, namespace, {kind: [entry(notes, kind, env=env)] for kind in kinds})
        )
    for kind in kinds:
        lines = set((notes / f"{kind}.environment").read_text().splitlines())
        own = {line for line in lines if line.startswith(("PWD=", "OLDPWD=", "SHLVL=", "_="))}
        assert lines - own == set(env), kind


@in_clean_process
async def test_start_container_hook_runs_as_the_containers_user(
    tmp_path: Path, namespace: str, notes: Path
) -> None:
    notes.chmod(0o777)
    async with running_service(namespace) as running:
        hooks = {"startContainer": [entry(notes, "startContainer", "id -u >user; ls / >root")]}
        bundle = builder(tmp_path, namespace, hooks)
        bundle.uid = 1234
        await running.run(bundle)
    assert (notes / "user").read_text() == "1234\n"
    assert "hooks" in (notes / "root").read_text().split()


# Failures


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
@in_clean_process
async def test_failed_hook_fails_create(
    tmp_path: Path, namespace: str, notes: Path, kind: str
) -> None:
    async with running_service(namespace) as running:
        command = "echo first; echo the reason >&2; exit 3"
        hooks = {kind: [entry(notes, kind, command)], "poststop": [entry(notes, "poststop")]}
        with pytest.raises(ShimError) as failure:
            await running.create(builder(tmp_path, namespace, hooks))
        path = notes / "hook"
        text = f'run {kind} hook "{path}": exit status 3: first\nthe reason'
        assert str(failure.value) == text
        assert order(notes) == [kind, "poststop"]
        assert not open_cgroup(f"/{namespace}/c", "c").exists()


@in_clean_process
async def test_failed_start_container_hook_fails_start(
    tmp_path: Path, namespace: str, notes: Path
) -> None:
    async with running_service(namespace) as running:
        hooks = {
            "startContainer": [entry(notes, "startContainer", "echo no >&2; exit 1")],
            "poststart": [entry(notes, "poststart")],
        }
        await running.create(builder(tmp_path, namespace, hooks))
        with pytest.raises(ShimError, match='startContainer hook "/hooks/hook": exit status 1: no'):
            await running.start("c")
        assert await asyncio.wait_for(running.wait("c"), DEADLINE) != 0
        assert order(notes) == ["startContainer"]


@in_clean_process
async def test_missing_hook_fails_create(tmp_path: Path, namespace: str, notes: Path) -> None:
    async with running_service(namespace) as running:
        hooks = {"prestart": [{"path": "/no/such/hook"}]}
        with pytest.raises(ShimError, match='prestart hook "/no/such/hook": No such file'):
            await running.create(builder(tmp_path, namespace, hooks))


@pytest.mark.parametrize("kind", ["createRuntime", "createContainer"])
@in_clean_process
async def test_hook_that_takes_too_long_is_killed(
    tmp_path: Path, namespace: str, notes: Path, kind: str
) -> None:
    async with running_service(namespace) as running:
        # With a child, which would go on and keep the output open.
        command = "echo $$ >group; sleep 1000 & wait"
        hooks = {kind: [entry(notes, kind, command, timeout=1)]}
        with pytest.raises(ShimError, match=f"run {kind} hook .*: not done in 1 s"):
            await running.create(builder(tmp_path, namespace, hooks))
        if kind == "createRuntime":  # the others' numbers are the container's, which is gone
            group = int((notes / "group").read_text())
            with pytest.raises(ProcessLookupError):
                os.killpg(group, 0)


@pytest.mark.parametrize("kind", ["poststart", "poststop"])
@in_clean_process
async def test_failed_late_hook_is_logged_and_the_next_one_runs(
    tmp_path: Path, namespace: str, notes: Path, kind: str
) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("containerd_shimkit.hooks").addHandler(handler)
    async with running_service(namespace) as running:
        hooks = {kind: [entry(notes, "first", "echo no; exit 1"), entry(notes, "second")]}
        await running.run(builder(tmp_path, namespace, hooks))
        assert (await running.state("c")).pid
        await running.remove("c")
    assert order(notes) == ["first", "second"]
    assert lines == [f'run {kind} hook "{notes}/hook": exit status 1: no']


# The shim meanwhile


@in_clean_process
async def test_shim_serves_others_while_a_hook_runs(
    tmp_path: Path, namespace: str, notes: Path
) -> None:
    for name in ("begun", "go-on"):
        os.mkfifo(notes / name)
    begun = os.open(notes / "begun", os.O_RDONLY | os.O_NONBLOCK)
    async with running_service(namespace) as running:
        command = "echo >begun; cat go-on"
        hooks = {"createRuntime": [entry(notes, "createRuntime", command)]}
        waiting = asyncio.create_task(running.create(builder(tmp_path, namespace, hooks)))
        await readable(begun)
        await running.run(builder(tmp_path, namespace, {}, "other"))
        assert not waiting.done()
        (notes / "go-on").write_text("go on")
        assert await asyncio.wait_for(waiting, DEADLINE) > 0


async def readable(descriptor: int) -> None:
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, event.set)
    await asyncio.wait_for(event.wait(), DEADLINE)
    loop.remove_reader(descriptor)


@in_clean_process
async def test_delete_command_runs_poststop_once(
    tmp_path: Path, namespace: str, notes: Path
) -> None:
    """Whoever is first: containerd runs it after every end, and twice if it was down."""
    async with running_service(namespace) as running:
        hooks = {"poststop": [entry(notes, "poststop")]}
        first = builder(tmp_path, namespace, hooks)
        await running.run(first)
        for _ in range(2):
            delete_task("address", namespace, "c", str(first.path))
        assert order(notes) == ["poststop"]
        await running.wait("c")
        await running.delete("c")
        second = builder(tmp_path, namespace, hooks, "second")
        await running.run(second)
        await running.remove("second")
        delete_task("address", namespace, "second", str(second.path))
        assert order(notes) == ["poststop", "poststop"]


@in_clean_process
async def test_delete_command_does_not_wait_long_for_poststop(
    tmp_path: Path, namespace: str, notes: Path
) -> None:
    async with running_service(namespace) as running:
        hooks = {"poststop": [entry(notes, "slow", "sleep 1000", timeout=1000)]}
        bundle = builder(tmp_path, namespace, hooks)
        await running.run(bundle)
        with redirect_stderr(StringIO()) as printed:
            delete_task("address", namespace, "c", str(bundle.path))
    # What the rest of the command has left of its three seconds.
    assert re.search(r"not done in [12]\.\d+ s", printed.getvalue()), printed.getvalue()


# Without a container


def test_hook_need_not_read_its_state(tmp_path: Path) -> None:
    """However long that is."""
    run_hooks("prestart", [Hook("/bin/true")], b"x" * (1 << 20))


def test_hook_may_print_without_end(tmp_path: Path) -> None:
    script = "for i in $(seq 100000); do echo line $i; done; exit 1"
    with pytest.raises(ShimError) as failure:
        run_hooks("prestart", [Hook("/bin/sh", ("sh", "-c", script))], b"")
    assert str(failure.value).endswith("line 100000")
    assert len(str(failure.value)) < 2000


def test_killed_hook_has_a_status(tmp_path: Path) -> None:
    with pytest.raises(ShimError, match="exit status 137"):
        run_hooks("prestart", [Hook("/bin/sh", ("sh", "-c", "kill -9 $$"))], b"")


def test_hook_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    run_hooks("prestart", [Hook("/bin/true", timeout=10)], b"{}")
    with pytest.raises(ShimError):
        run_hooks("prestart", [Hook("/no/such/hook")], b"{}")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
