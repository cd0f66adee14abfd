"""Commands of the OCI runtime; a script stands in for it, and says what it was given."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.errors import NotFoundError, UnavailableError
from containerd_shimkit.reaper import Reaper
from containerd_shimkit.task import runc as runc_module
from containerd_shimkit.task.runc import Runc, RuncError, StandardStreams

SECONDS = 20.0
# Writes down its arguments, one a line, and gives --pid-file a number; the rest is the test's.
SCRIPT = """\
#!/bin/sh
for argument; do echo "$argument"; done >"$0.arguments"
env | sort >"$0.environment"
log= pid_file= previous=
for argument; do
    case $previous in
        --log) log=$argument ;;
        --pid-file) pid_file=$argument ;;
    esac
    previous=$argument
done
[ -z "$pid_file" ] || printf 4711 >"$pid_file"
"""


class FakeRuntime:
    """A script, and a bundle to run it for."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "runtime"
        self.bundle = directory / "bundle"
        self.bundle.mkdir()
        self.does("")

    def does(self, script: str) -> None:
        """Let it run these lines after it has written down what it was given."""
        self.path.write_text(SCRIPT + script)
        self.path.chmod(0o755)

    def fails(self, *entries: object, code: int = 1) -> None:
        """Let it log these entries and end with ``code``."""
        lines = [e if isinstance(e, str) else json.dumps(e) for e in entries]
        text = "\n".join(lines)
        self.does(f"cat >\"$log\" <<'END'\n{text}\nEND\nexit {code}\n")

    def run(self, command: Callable[[Runc], Awaitable[Any]], **options: Any) -> Any:
        """Call a method; return what it returned."""

        async def body() -> Any:
            runc = Runc(Reaper(subreaper=False), "ns", binary=str(self.path), **options)
            async with asyncio.timeout(SECONDS):
                return await command(runc)

        return asyncio.run(body())

    @property
    def arguments(self) -> list[str]:
        return Path(f"{self.path}.arguments").read_text().splitlines()

    @property
    def command(self) -> list[str]:
        """The arguments from the command on."""
        return self.arguments[6:]


@pytest.fixture
def runtime(tmp_path: Path) -> FakeRuntime:
    return FakeRuntime(tmp_path)


def start(runtime: FakeRuntime) -> Callable[[Runc], Awaitable[None]]:
    return lambda runc: runc.start("c", runtime.bundle)


def program(directory: Path, name: str, mode: int = 0o755) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def command_of(binary: str = "", root: str = "") -> tuple[str, ...]:
    async def body() -> tuple[str, ...]:
        return Runc(Reaper(subreaper=False), "ns", binary=binary, root=root).command

    return asyncio.run(body())


# Which program


@pytest.fixture
def search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory that programs are looked for in."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setattr(runc_module, "_PATH", f"{tmp_path}/none:{directory}")
    return directory


def test_runc_is_preferred_to_crun(search_path: Path) -> None:
    crun = program(search_path, "crun")
    assert command_of()[0] == str(crun)
    runc = program(search_path, "runc")
    assert command_of()[0] == str(runc)


def test_program_can_be_chosen_by_name(search_path: Path) -> None:
    program(search_path, "runc")
    other = program(search_path, "other")
    assert command_of("other")[0] == str(other)


def test_program_can_be_chosen_by_path(search_path: Path, tmp_path: Path) -> None:
    other = program(tmp_path / "opt", "other")
    assert command_of(str(other))[0] == str(other)


def test_node_without_a_runtime_is_told_what_is_missing(search_path: Path) -> None:
    with pytest.raises(UnavailableError, match="needs runc or crun on the node"):
        command_of()


@pytest.mark.parametrize("binary", ["other", "/opt/does-not-exist/other"])
def test_chosen_program_that_is_missing_is_named(search_path: Path, binary: str) -> None:
    program(search_path, "runc")
    with pytest.raises(UnavailableError, match=f"needs {binary} on the node"):
        command_of(binary)


def test_file_that_cannot_be_executed_is_passed_over(search_path: Path) -> None:
    program(search_path, "runc", mode=0o644)
    with pytest.raises(UnavailableError):
        command_of()


def test_directory_with_its_name_is_passed_over(search_path: Path) -> None:
    (search_path / "runc").mkdir()
    crun = program(search_path, "crun")
    assert command_of()[0] == str(crun)


# What it is given


def test_state_is_kept_where_containerds_shim_keeps_it(search_path: Path) -> None:
    program(search_path, "runc")
    assert command_of()[1:] == ("--root", "/run/containerd/runc/ns")


def test_state_can_be_kept_elsewhere(search_path: Path) -> None:
    program(search_path, "runc")
    assert command_of(root="/run/other")[1:] == ("--root", "/run/other/ns")


def test_cgroups_can_be_systemds(runtime: FakeRuntime) -> None:
    runtime.run(start(runtime), systemd_cgroup=True)
    assert runtime.arguments[2:3] == ["--systemd-cgroup"]


def test_options_of_every_command(runtime: FakeRuntime) -> None:
    runtime.run(start(runtime), root="/run/other")
    log = str(runtime.bundle / "runc.json")
    options = ["--root", "/run/other/ns", "--log", log, "--log-format", "json"]
    assert runtime.arguments == [*options, "start", "c"]


def test_environment_is_not_ours(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SHIM", "1")
    runtime.run(start(runtime))
    names = {
        line.partition("=")[0]
        for line in Path(f"{runtime.path}.environment").read_text().splitlines()
    }
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH"}


def test_create(runtime: FakeRuntime) -> None:
    bundle = runtime.bundle
    assert runtime.run(lambda runc: runc.create("c", bundle, None)) == 4711
    pid_file = str(bundle / "init.pid")
    assert runtime.command == ["create", "--bundle", str(bundle), "--pid-file", pid_file, "c"]


def test_create_with_a_terminal(runtime: FakeRuntime) -> None:
    console = Path("/run/console/socket")
    runtime.run(lambda runc: runc.create("c", runtime.bundle, None, console))
    assert runtime.command[-3:] == ["--console-socket", str(console), "c"]


def test_exec(runtime: FakeRuntime) -> None:
    process = runtime.bundle / "exec-1.json"
    assert runtime.run(lambda runc: runc.exec("c", runtime.bundle, process, None)) == 4711
    assert runtime.command == [
        *("exec", "--detach", "--process", str(process)),
        *("--pid-file", str(runtime.bundle / "exec-1.pid"), "c"),
    ]


def test_kill(runtime: FakeRuntime) -> None:
    runtime.run(lambda runc: runc.kill("c", runtime.bundle, 15))
    assert runtime.command == ["kill", "c", "15"]


def test_kill_of_every_process(runtime: FakeRuntime) -> None:
    runtime.run(lambda runc: runc.kill("c", runtime.bundle, 9, everything=True))
    assert runtime.command == ["kill", "--all", "c", "9"]


def test_delete(runtime: FakeRuntime) -> None:
    runtime.run(lambda runc: runc.delete("c", runtime.bundle))
    assert runtime.command == ["delete", "--force", "c"]


def test_streams_become_the_standard_ones(runtime: FakeRuntime, tmp_path: Path) -> None:
    runtime.does("cat; echo err >&2\n")
    (tmp_path / "in").write_text("in\n")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptors = [os.open(tmp_path / name, flags) for name in ("in", "out", "err")]
    streams = StandardStreams(*descriptors)
    runtime.run(lambda runc: runc.create("c", runtime.bundle, streams))
    for descriptor in descriptors:
        os.close(descriptor)
    assert (tmp_path / "out").read_text() == "in\n"
    assert (tmp_path / "err").read_text() == "err\n"


def test_no_other_descriptor_is_passed_on(runtime: FakeRuntime, tmp_path: Path) -> None:
    runtime.does('ls -l /proc/$$/fd >"$0.descriptors"\n')
    with open(tmp_path / "ours", "w") as file:
        runtime.run(start(runtime))
        listing = Path(f"{runtime.path}.descriptors").read_text()
        assert file.name not in listing


# How it ends


def test_reason_comes_from_its_log(runtime: FakeRuntime) -> None:
    runtime.fails(
        {"level": "warning", "msg": "something else"},
        {"level": "error", "msg": "first"},
        {"level": "error", "msg": "container_linux.go: no such thing", "time": "now"},
        {"level": "debug", "msg": "the end"},
    )
    with pytest.raises(RuncError, match=r"^container_linux\.go: no such thing$"):
        runtime.run(start(runtime))


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param("", id="nothing"),
        pytest.param("not JSON", id="text"),
        pytest.param(["error"], id="list"),
        pytest.param({"level": "info", "msg": "fine"}, id="no-error"),
        pytest.param({"level": "error"}, id="no-message"),
    ],
)
def test_without_a_reason_the_exit_code_is_told(runtime: FakeRuntime, entry: object) -> None:
    runtime.fails(entry, code=3)
    with pytest.raises(RuncError, match=r"^runtime ended with 3$"):
        runtime.run(start(runtime))


def test_end_by_a_signal_is_told(runtime: FakeRuntime) -> None:
    runtime.does("kill -9 $$\n")
    with pytest.raises(RuncError, match=r"^runtime ended with 137$"):
        runtime.run(start(runtime))


def test_reason_of_an_earlier_command_is_not_told_again(runtime: FakeRuntime) -> None:
    runtime.fails({"level": "error", "msg": "the first"})
    with pytest.raises(RuncError, match="the first"):
        runtime.run(start(runtime))
    runtime.does("exit 1\n")
    with pytest.raises(RuncError, match="ended with 1"):
        runtime.run(start(runtime))


@pytest.mark.parametrize(
    "reason",
    [
        "container not running",
        'container "c" does not exist',
        "os: process already finished",
        "No such process",
    ],
)
def test_kill_of_what_has_ended_is_not_found(runtime: FakeRuntime, reason: str) -> None:
    runtime.fails({"level": "error", "msg": reason})
    with pytest.raises(NotFoundError, match="process already finished"):
        runtime.run(lambda runc: runc.kill("c", runtime.bundle, 15))


def test_kill_that_fails_otherwise_says_why(runtime: FakeRuntime) -> None:
    runtime.fails({"level": "error", "msg": "operation not permitted"})
    with pytest.raises(RuncError, match="operation not permitted"):
        runtime.run(lambda runc: runc.kill("c", runtime.bundle, 15))
