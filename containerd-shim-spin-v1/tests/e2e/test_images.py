"""The example image, through every one of its routes; and how an image's app sees the world."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import App, Node, eventually

pytestmark = [pytest.mark.root, pytest.mark.containerd]


@pytest.fixture
def hello(node: Node, hello_image: str) -> App:
    return node.run(hello_image)


def test_example_answers_on_every_route(hello: App) -> None:
    """Rust, C, a file of the image, WAGI, the health route, and what is not there."""
    answers = {
        path: (answer.status, answer.text)
        for path in (
            "/hello",
            "/c-hello",
            "/.well-known/spin/health",
            "/.well-known/spin/nothing",
            "/no",
        )
        for answer in [hello.get(path)]
    }
    assert answers == {
        "/hello": (200, "Hello world from Spin!"),
        "/c-hello": (200, "Hello world from C!"),
        "/.well-known/spin/health": (200, "OK"),
        "/.well-known/spin/nothing": (404, ""),
        "/no": (404, ""),
    }
    assert 'The manifest\'s "files" gives it' in hello.get("/c-hello/about").text
    assert "QUERY_STRING=a=b" in hello.get("/wagi-hello?a=b").text
    assert hello.stop() == 0


def test_foreground_shows_what_the_guest_prints(node: Node, probe_image: str) -> None:
    """`ctr run` has stdout, stderr, and the engine's own lines on stderr."""
    with node.foreground(probe_image) as ctr:
        app = ctr.app()
        app.get("/stdout?text=out-line")
        app.get("/stderr?text=err-line")
        assert app.get("/trap").status == 500
        eventually(lambda: "GET /trap failed" in ctr.stderr, "the log line")
        app.kill("SIGTERM")
        assert ctr.process.wait(20) == 0
        assert ctr.stdout == "out-line\n"
        assert "err-line\n" in ctr.stderr
        assert "ERROR component 'probe': GET /trap failed" in ctr.stderr


def test_log_file_has_both_streams(probe: App) -> None:
    """--log-uri file:///…: containerd opens nothing, the shim does."""
    probe.get("/stdout?text=to-out")
    probe.get("/stderr?text=to-err")
    assert "to-out\n" in probe.log
    assert "to-err\n" in probe.log


def test_log_program_gets_both_streams(node: Node, probe_image: str) -> None:
    """--log-uri binary:///…: a program with stdout, stderr and "ready" as 3, 4 and 5."""
    output = node.directory / "logged"
    script = node.directory / "logger"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$CONTAINER_NAMESPACE $CONTAINER_ID $*" >"{output}.args"\n'
        "exec 5>&-\n"
        f'cat <&3 >"{output}.3" &\n'
        f'cat <&4 >"{output}.4"\n'
        "wait\n"
    )
    script.chmod(0o755)
    app = node.run(probe_image, log_uri=f"binary://{script}?level=info")
    app.get("/stdout?text=to-out")
    app.get("/stderr?text=to-err")
    assert app.stop() == 0
    read = {suffix: node.directory / f"logged.{suffix}" for suffix in ("3", "4", "args")}
    eventually(lambda: read["3"].read_text() == "to-out\n", "the program has stdout")
    eventually(lambda: "to-err\n" in read["4"].read_text(), "the program has stderr")
    assert read["args"].read_text() == f"{node.daemon.namespace} {app.id} level info\n"


def test_log_program_that_ends_does_not_end_the_app(node: Node, probe_image: str) -> None:
    script = node.directory / "short-logger"
    script.write_text("#!/bin/sh\nexec 5>&-\n")
    script.chmod(0o755)
    app = node.run(probe_image, log_uri=f"binary://{script}")
    for _ in range(3):
        assert app.get("/stdout?text=to-nobody").status == 200
    assert app.stop() == 0


def test_output_that_nobody_reads_does_not_stop_the_app(node: Node, probe_image: str) -> None:
    """ctr is gone and the pipes are full: 3 MiB are more than they and the buffer hold."""
    with node.foreground(probe_image) as ctr:
        app = ctr.app()
        ctr.process.kill()
        ctr.process.wait(20)
        for _ in range(60):
            assert app.get(f"/stdout?text={'x' * 50_000}").status == 200
        assert app.stop() == 0


def test_interrupted_ctr_ends_the_app(node: Node, probe_image: str) -> None:
    """Ctrl-C at `ctr run`: it passes the signal on."""
    with node.foreground(probe_image) as ctr:
        ctr.app()
        ctr.process.send_signal(signal.SIGINT)
        assert ctr.process.wait(20) == 0


def test_large_response_is_whole(probe: App) -> None:
    assert len(probe.get("/big?bytes=50000000").body) == 50_000_000


def test_guest_has_the_environment_of_its_manifest_only(node: Node, probe_image: str) -> None:
    """Neither containerd's variables nor the container's reach a component."""
    app = node.run(probe_image, env={"SECRET": "of-the-container"})
    assert app.get("/env?name=GREETING").text == "from the manifest"
    for name in ("SECRET", "PATH", "HOME", "CONTAINERD_WASM_SHIMS_RUN", "SPIN_HTTP_LISTEN_ADDR"):
        assert app.get(f"/env?name={name}").status == 404
    lines = app.get("/wagi?mode=env").text
    for name in ("SECRET=", "PATH=/", "HOME=", "CONTAINERD_WASM_SHIMS", "LANG="):
        assert f"\n{name}" not in lines


def test_user_without_privileges(node: Node, unprivileged_image: str) -> None:
    """The engine has the user and groups of the image, and no capability."""
    app = node.run(unprivileged_image)
    assert app.get("/echo", method="POST", body=b"x").body == b"x"
    lines = Path(f"/proc/{app.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["1000"] * 4
    assert (status["CapEff"], status["CapPrm"], status["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    assert app.stop() == 0


def test_readonly_rootfs(node: Node, probe_image: str) -> None:
    app = node.run(probe_image, "--read-only")
    assert app.get("/echo", method="POST", body=b"x").body == b"x"
    assert app.stop() == 0


COPIED = """\
spin_manifest_version = "1"
name = "copied"
version = "1"
trigger = { type = "http", base = "/" }
[[component]]
id = "probe"
source = "probe.wasm"
files = ["static/*.txt"]
exclude_files = ["static/hidden.txt"]
[component.trigger]
route = "/..."
"""


@pytest.mark.parametrize("options", [[], ["--read-only"]], ids=["writable", "read-only"])
def test_files_that_have_to_be_copied(node: Node, probe_wasm: bytes, options: list[str]) -> None:
    """Copies go to /dev/shm where /tmp cannot be written to."""
    image = node.image(
        [
            ImageFile("spin.toml", COPIED.encode()),
            ImageFile("probe.wasm", probe_wasm),
            ImageFile("static/shown.txt", b"shown"),
            ImageFile("static/hidden.txt", b"hidden"),
            ImageFile("tmp/.keep"),
        ]
    )
    app = node.run(image, *options)
    assert app.get("/file?path=/static/shown.txt").text == "shown"
    assert app.get("/file?path=/static/hidden.txt").status == 404
    assert app.stop() == 0


def test_readonly_rootfs_with_a_directory(node: Node, hello_image: str) -> None:
    """A whole directory is given to the guest as it is."""
    app = node.run(hello_image, "--read-only")
    assert "is a file of the image" in app.get("/c-hello/about").text


def test_memory_limit_is_in_the_metrics(node: Node, probe_image: str) -> None:
    app = node.run(probe_image, "--memory-limit", str(96 << 20))
    metrics = node.daemon.ctr("task", "metrics", app.id).stdout
    values = dict(line.split()[:2] for line in metrics.splitlines() if len(line.split()) == 2)
    limit = values.get("memory.limit_in_bytes") or values.get("memory.max")
    assert limit == str(96 << 20)


def test_metrics_of_a_running_app(node: Node, probe: App) -> None:
    metrics = node.daemon.ctr("task", "metrics", probe.id).stdout
    values = {line.split()[0]: line.split()[1] for line in metrics.splitlines() if line.split()}
    memory = values.get("memory.usage_in_bytes") or values.get("memory.usage") or "0"
    assert int(memory) > 1 << 20
    assert int(values["pids.current"]) >= 1
