"""Wws apps as containers, from their start to their end."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from containerd_shimkit.testing.apps import App, Node, eventually
from containerd_shimkit.testing.fixtures import ON_EACH_CONTAINERD

pytestmark = [pytest.mark.root, pytest.mark.containerd]

ImageOf = Callable[..., str]  # of conftest.py


def accepts(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(address) == 0


@ON_EACH_CONTAINERD
def test_the_example(node: Node, hello_image: str) -> None:
    app = node.run(hello_image)
    assert app.get("/hello").body == b"hello world!"
    assert app.get("/c").body == b"hello from C!"
    assert app.get("/python").text.startswith("hello from Python, GET http://127.")
    assert app.get("/greet/Ada%20L").body == b"hello, Ada L!"
    assert app.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert [app.get("/counter").body for _ in range(3)] == [b"1", b"2", b"3"]
    assert app.get("/missing").status == 404
    assert app.stop() == 0


def test_the_example_in_python(node: Node, python_image: str) -> None:
    app = node.run(python_image)
    answer = app.get("/hello")
    assert (answer.status, answer.body) == (200, b"hello from Python!")
    assert answer.headers["content-type"] == "text/plain"


def test_it_listens_on_port_3000_of_all_addresses(node: Node, hello_image: str) -> None:
    """Without the variable, which everything else here sets."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("0.0.0.0", 3000))
        taken.listen()
        refusal = node.run_refused(hello_image, env={"WWS_HTTP_LISTEN_ADDR": ""})
    assert "cannot listen on 0.0.0.0:3000: Address already in use" in refusal.error
    assert refusal.exit_code == 69


@ON_EACH_CONTAINERD
def test_requests_in_flight_may_end(probe: App) -> None:
    connection = probe.connect()
    connection.request("GET", "/probe?mode=sleep&ms=1500")
    assert probe.get("/page.html").status == 200  # a turn later: the request is under way
    probe.kill("SIGTERM")
    eventually(lambda: not accepts(probe.address), "nobody listens")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"slept")
    connection.close()
    probe.wait()
    assert probe.delete() == 0


def test_sigkill_ends_with_137(probe: App) -> None:
    assert probe.stop("SIGKILL") == 137


def test_health(probe: App) -> None:
    assert probe.get("/.well-known/wws/health").body == b"OK"


def test_what_workers_say_and_why_they_fail_is_in_the_log(probe: App) -> None:
    assert probe.get("/probe?mode=stderr").body == b"said"
    assert probe.get("/probe?mode=exit&code=2").status == 500
    eventually(lambda: "a line of the worker\n" in probe.log)
    eventually(
        lambda: "/probe.wasm: GET /probe failed: the guest exited with status 2" in probe.log
    )


def test_request_is_as_upstream_has_it(probe: App) -> None:
    request = json.loads(probe.get("/probe?a=b", headers={"host": "example.com"}).body)
    assert request["url"] == "http://example.com/probe?a=b"
    assert set(request) == {"url", "method", "headers", "body", "kv", "params"}


def test_folder_is_kept_on_a_volume(node: Node, image_of: ImageOf) -> None:
    config = 'version = "1"\n[[folders]]\nfrom = "data"\nto = "/mnt"\n'
    image = image_of(node, {"probe.wasm": "probe.wasm", "probe.toml": config})
    app = node.run(image, "--mount", "type=tmpfs,src=tmpfs,dst=/data,options=mode=1777")
    assert app.get("/probe?mode=write&path=/mnt/new").body == b"7 bytes, 0"
    assert app.get("/probe?mode=read&path=/mnt/new").body == b"written"


def test_values_are_kept_on_a_volume(node: Node, image_of: ImageOf, tmp_path: Path) -> None:
    config = 'version = "1"\n[data.kv]\nnamespace = "n"\n'
    image = image_of(node, {"probe.wasm": "probe.wasm", "probe.toml": config})
    mount = f"type=bind,src={tmp_path},dst=/data,options=rbind:rw"
    for before in ("{}", '{"k":"1"}'):
        app = node.run(image, "--mount", mount, env={"WWS_KV": "directory:/data/kv"})
        assert app.get("/probe?mode=kv&key=k&value=1").text == before
        assert app.stop() == 0
    assert (tmp_path / "kv" / "n.json").read_text() == '{"k": "1"}'


@pytest.mark.parametrize("folder", ["proc/self", "sys", "dev", "../proc"])
def test_folder_of_the_kernel_is_refused(node: Node, image_of: ImageOf, folder: str) -> None:
    config = f'version = "1"\n[[folders]]\nfrom = "{folder}"\nto = "/mnt"\n'
    image = image_of(node, {"probe.wasm": "probe.wasm", "probe.toml": config})
    refusal = node.run_refused(image)
    assert "/probe.toml:2:1: folders[0]: " in refusal.error
    assert "these are files of the kernel" in refusal.error
    assert refusal.exit_code == 78


def test_image_without_workers(node: Node, image_of: ImageOf) -> None:
    refusal = node.run_refused(image_of(node, {"readme.txt": "nothing"}))
    assert "/: no worker (.wasm, .js, .py) and no directory `public` in the image" in refusal.error
    assert refusal.exit_code == 66


def test_two_processors(node: Node, probe_image: str) -> None:
    app = node.run(probe_image, env={"WWS_HTTP_WORKERS": "2"})
    assert app.get("/probe").status == 200
    eventually(lambda: app.get("/page.html").body == b"<p>page</p>")
    assert app.stop() == 0


def test_user_who_is_not_root(node: Node, image_of: ImageOf) -> None:
    image = image_of(node, {"probe.wasm": "probe.wasm"}, "1000:1000")
    assert node.run(image).get("/probe").status == 200


def test_folder_of_the_whole_project(node: Node, image_of: Callable[..., str]) -> None:
    """It is what the image holds, to be read: with ``/proc`` a worker would have the host's."""
    folder = 'version = "1"\n[[folders]]\nfrom = "."\nto = "/mnt"\n'
    files = {"probe.wasm": "probe.wasm", "probe.toml": folder, "data/hello.txt": "hello"}
    app = node.run(image_of(node, files))

    def read(path: str) -> str:
        return app.get(f"/probe?mode=read&path={path}").text

    assert read("/mnt/data/hello.txt") == "hello"
    nothing = read("/mnt/none")
    for path in ("/mnt/proc/self/maps", "/mnt/proc/1/environ", "/mnt/dev/null"):
        assert read(path) == nothing.replace("/mnt/none", path)
    assert "7 bytes" not in app.get("/probe?mode=write&path=/mnt/data/new").text
    assert app.stop() == 0
