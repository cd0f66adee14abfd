"""Guests that misbehave: each costs its own request, never the server."""

from __future__ import annotations

import threading
import time

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import Answer, App, Node, eventually

pytestmark = [pytest.mark.root, pytest.mark.containerd]


def serves(app: App) -> bool:
    return app.get("/echo", method="POST", body=b"still here").body == b"still here"


@pytest.mark.parametrize(
    "path",
    [
        "/trap",
        "/abort",
        "/recurse",
        "/exit?code=0",
        "/exit?code=3",
        "/bad-body-pointer",
        "/bad-header-count",
        "/bad-tag",
        "/alloc-forever",
        "/realloc-lies",
        "/response-lies",
        "/wagi?mode=trap",
        "/wagi?mode=empty",
    ],
)
def test_broken_guest_is_a_500_with_a_log_line(probe: App, path: str) -> None:
    assert probe.get(path).status == 500
    assert f"ERROR component {component_of(path)!r}: GET {path.split('?')[0]} failed: " in probe.log
    assert serves(probe)
    assert probe.stop() == 0


def component_of(path: str) -> str:
    name = path.split("?")[0].removeprefix("/")
    return name if name in ("wagi", "realloc-lies", "response-lies") else "probe"


@pytest.mark.parametrize(
    "path",
    ["/wagi?mode=no-headers", "/status?code=0", "/status?code=99", "/status?code=1000"],
)
def test_answer_that_is_none_is_a_500(probe: App, path: str) -> None:
    assert probe.get(path).status == 500
    assert serves(probe)


@pytest.mark.parametrize("path", ["/bad-utf8-header", "/bad-header-name", "/bad-header-value"])
def test_header_that_may_not_be_sent_is_not_sent(probe: App, path: str) -> None:
    """It can neither split the response nor break the connection."""
    answer = probe.get(path)
    assert "x-injected" not in answer.headers
    assert answer.status in (200, 500)
    assert serves(probe)


def test_memory_that_is_exhausted_is_the_guests_problem(node: Node, probe_image: str) -> None:
    app = node.run(probe_image, env={"SPIN_MAX_INSTANCE_MEMORY": str(32 << 20)})
    assert app.get("/alloc?mb=8").status == 200
    assert app.get("/alloc?mb=64").status == 507
    assert app.get("/big?bytes=100000000").status == 507
    assert app.get("/alloc-forever").status == 500
    assert serves(app)
    assert app.stop() == 0


def test_memory_limit_of_the_container_bounds_each_guest(node: Node, probe_image: str) -> None:
    """A guest learns that memory is short; the kernel's OOM killer is not needed."""
    app = node.run(probe_image, "--memory-limit", str(96 << 20))
    assert app.get("/alloc?mb=16").status == 200
    assert app.get("/alloc?mb=128").status == 507
    assert serves(app)
    assert app.stop() == 0


def test_module_that_begins_with_3_gib(node: Node, guest: bytes) -> None:
    """It starts where there is room, and is a 500 where there is not."""
    manifest = (
        'spin_manifest_version = "1"\nname = "a"\nversion = "1"\n'
        'trigger = { type = "http", base = "/" }\n'
        '[[component]]\nid = "huge"\nsource = "huge.wasm"\n[component.trigger]\nroute = "/huge"\n'
    )
    image = node.image([ImageFile("spin.toml", manifest.encode()), ImageFile("huge.wasm", guest)])
    assert node.run(image).get("/huge").text == "so much room\n"
    small = node.run(image, env={"SPIN_MAX_INSTANCE_MEMORY": str(1 << 30)})
    assert small.get("/huge").status == 500
    assert small.get("/.well-known/spin/health").status == 200


@pytest.fixture
def guest(pytestconfig: pytest.Config) -> bytes:
    guests = pytestconfig.rootpath / "containerd-shim-spin-v1" / "tests" / "guests"
    return (guests / "huge_memory.wasm").read_bytes()


@pytest.mark.parametrize("path", ["/loop", "/wagi?mode=loop"])
def test_endless_loop_is_cut_and_others_are_served_meanwhile(
    node: Node, probe_image: str, path: str
) -> None:
    app = node.run(probe_image, env={"SPIN_HTTP_REQUEST_TIMEOUT_SECONDS": "3"})
    answers: list[Answer] = []
    looping = threading.Thread(target=lambda: answers.append(app.get(path)))
    begin = time.monotonic()
    looping.start()
    served = 0
    slowest = 0.0
    while looping.is_alive():
        start = time.monotonic()
        assert app.get("/status?code=204").status == 204
        slowest = max(slowest, time.monotonic() - start)
        served += 1
    looping.join()
    assert [(a.status, a.text) for a in answers] == [(504, "the component took too long\n")]
    assert time.monotonic() - begin < 10
    assert served >= 5
    assert slowest < 2  # it waits for a tick, not for the end of the loop
    eventually(lambda: "took more than 3 s" in app.log, "the log line")
    assert app.stop() == 0


def test_sleeping_guests_do_not_wait_for_each_other(probe: App) -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(probe.get("/sleep?ms=300").status))
        for _ in range(40)
    ]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 40
    assert time.monotonic() - begin < 6  # one after another it is 12


# Limits of requests


def test_body_beyond_the_limit_is_413(node: Node, probe_image: str) -> None:
    app = node.run(probe_image, env={"SPIN_HTTP_MAX_BODY_BYTES": "1000"})
    assert app.get("/echo", method="POST", body=b"x" * 1000).body == b"x" * 1000
    answer = app.get("/echo", method="POST", body=b"x" * 1001)
    assert (answer.status, answer.text) == (413, "the body has 1001 bytes, more than 1000\n")
    assert app.get("/echo", method="POST", body=b"x").status == 200


def test_chunked_body_beyond_the_limit_is_413(node: Node, probe_image: str) -> None:
    app = node.run(probe_image, env={"SPIN_HTTP_MAX_BODY_BYTES": "1000"})
    connection = app.connect()
    connection.request("POST", "/echo", iter([b"x" * 600] * 2), encode_chunked=True)
    response = connection.getresponse()
    assert (response.status, response.read()) == (413, b"the body has more than 1000 bytes\n")
    connection.close()


@pytest.mark.parametrize("headers", [1, 40])
def test_head_beyond_64_kib_is_431(probe: App, headers: int) -> None:
    value = "x" * ((65 << 10) // headers)
    answer = probe.get("/headers", headers={f"x-{i}": value for i in range(headers)})
    assert answer.status == 431
    assert serves(probe)


def test_requests_beyond_the_count_are_503(node: Node, probe_image: str) -> None:
    app = node.run(probe_image, env={"SPIN_MAX_INSTANCE_COUNT": "1"})
    connection = app.connect()
    connection.request("GET", "/sleep?ms=60000")
    eventually(lambda: app.get("/status?code=204").status == 503, "the first one is served")
    assert app.get("/.well-known/spin/health").status == 200
    connection.close()
    assert app.stop("SIGKILL") == 137
