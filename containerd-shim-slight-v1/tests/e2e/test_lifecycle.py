"""Slight apps as containers, from their start to their end."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import App, Node, eventually
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUESTS = Path(__file__).parents[1] / "guests"
SLIGHTFILE = """\
specversion = "0.2"
[[capability]]
resource = "http"
name = "api"
[[capability]]
resource = "keyvalue.filesystem"
name = "*"
"""


def files(guest: str, slightfile: str) -> list[ImageFile]:
    return [
        ImageFile("slightfile.toml", slightfile.encode()),
        ImageFile("app.wasm", (GUESTS / f"{guest}.wasm").read_bytes()),
    ]


def accepts(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(address) == 0


@ON_EACH_CONTAINERD
def test_the_example_keeps_a_value(node: Node, hello_image: str) -> None:
    app = node.run(hello_image)
    assert app.get("/hello").body == b"hello world!"
    assert app.get("/get").status == 404
    assert app.get("/set", method="PUT", body=b"kept").status == 204
    answer = app.get("/get", headers={"x-mine": "1"})
    assert (answer.status, answer.body, answer.headers["x-mine"]) == (200, b"kept", "1")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "Server is running on port 3000\n" in app.log
    assert "I just got a request uri: /hello method: GET\n" in app.log
    assert app.stop() == 0


def test_the_guest_says_where_it_listens(node: Node, hello_image: str) -> None:
    """Without the variable, which everything else here sets."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("0.0.0.0", 3000))
        taken.listen()
        refusal = node.run_refused(hello_image, env={"SLIGHT_HTTP_LISTEN_ADDR": ""})
    assert "cannot listen on 0.0.0.0:3000: Address already in use" in refusal.error
    assert refusal.exit_code == 69


@ON_EACH_CONTAINERD
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_requests_in_flight_end_at_a_stop(probe: App, number: str) -> None:
    connection = probe.connect()
    connection.request("GET", "/sleep/1500")
    assert probe.get("/counter").body == b"1"
    probe.kill(number)
    eventually(lambda: not accepts(probe.address), "nobody listens")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"1500")
    connection.close()
    probe.wait()
    assert probe.delete() == 0


def test_sigkill_ends_with_137(probe: App) -> None:
    assert probe.stop("SIGKILL") == 137


def test_health(probe: App) -> None:
    assert probe.get("/.well-known/slight/health").body == b"OK"


def test_configs_are_of_the_container(node: Node, probe_image: str) -> None:
    app = node.run(probe_image, env={"GREETING": "hi"})
    assert app.get("/config/GREETING").body == b"hi"
    assert app.get("/config/CONTAINERD_ADDRESS").status == 418


def test_store_of_a_user_who_may_not_write(node: Node) -> None:
    """The image is empty, so there is no /tmp: a directory has to be mounted."""
    image = node.image(files("probe", SLIGHTFILE), "1000:1000")
    app = node.run(image)
    answer = app.get("/kv/store/key", method="PUT", body=b"x")
    assert answer.status == 418
    assert answer.body.startswith(b"6 store 'store': Permission denied")
    app.stop()
    mount = "type=tmpfs,src=tmpfs,dst=/tmp,options=mode=1777"
    app = node.run(image, "--mount", mount)
    assert app.get("/kv/store/key", method="PUT", body=b"x").status == 204
    assert app.get("/kv/store/key").body == b"x"


@ON_EACH_CONTAINERD
def test_failure_of_the_guest_is_the_reason(node: Node, probe_image: str) -> None:
    refusal = node.run_refused(probe_image, env={"SETUP": "error"})
    reason = "/app.wasm: on-server-init returned an error: no luck today"
    assert reason in refusal.error
    assert reason in refusal.log
    assert refusal.exit_code == 69


def test_bad_slightfile_is_the_reason(node: Node) -> None:
    image = node.image(files("probe", 'specversion = "0.9"\n'))
    refusal = node.run_refused(image)
    assert '/slightfile.toml:1:1: specversion = "0.9": known versions: 0.1, 0.2' in refusal.error
    assert refusal.exit_code == 78


def test_backend_that_is_not_there_is_the_reason(node: Node) -> None:
    """Looked for among the node's modules, from inside the container."""
    image = node.image(files("probe", SLIGHTFILE.replace("filesystem", "dapr")))
    refusal = node.run_refused(image)
    reason = "/slightfile.toml:5:1: capability[1]: keyvalue.dapr is not served by this shim"
    assert reason in refusal.error
    assert refusal.exit_code == 78


# Programs


@ON_EACH_CONTAINERD
def test_program_runs_to_its_end(node: Node, program_image: str) -> None:
    with node.foreground(program_image) as running:
        assert running.process.wait(30) == 0
        assert running.stdout == "argument /\nerror 0 there is no key 'key'\ngot value\n"


def test_program_is_cut_off(node: Node) -> None:
    """Nothing reaches a guest that sleeps."""
    image = node.image(files("program", 'specversion = "0.1"\n'))
    task_id = node.new_id()
    command = node.run_command(image, task_id, ("127.0.0.1", 0), "-d")
    node.daemon.ctr(*command, "/app", "sleep")
    app = node.adopt(task_id, ("127.0.0.1", 0))
    assert app.stop() == 143
