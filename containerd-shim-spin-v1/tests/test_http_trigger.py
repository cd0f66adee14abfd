"""The HTTP trigger as clients and guests see it, with real guests.

What Spin's rules say is in ``conformance``; this is what may go wrong, and what goes beyond them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest

from containerd_shimkit.testing.http import connected, fetch, head

Image = Any  # of conftest.py
DEADLINE = 30.0  # seconds


# Guests that are well


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 10 << 20])
def test_body_comes_back(probe: Image, size: int) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[:size]

    async def main(port: int) -> None:
        response = await fetch(port, "/echo", method="POST", body=body)
        assert response.status == 200
        assert response["content-length"] == str(size)
        assert response["content-type"] == "application/octet-stream"
        assert response.body == body

    probe.run(main)


@pytest.mark.parametrize("chunk", [1, 1000, 70_000])
def test_chunked_request_is_put_together(probe: Image, chunk: int) -> None:
    body = bytes(range(256)) * (8 if chunk == 1 else 1000)

    async def main(port: int) -> None:
        async with connected(port) as connection:
            await connection.send(head("POST", "/echo", [("transfer-encoding", "chunked")]))
            for at in range(0, len(body), chunk):
                part = body[at : at + chunk]
                await connection.send(b"%x\r\n%b\r\n" % (len(part), part))
            await connection.send(b"0\r\n\r\n")
            assert (await connection.response()).body == body

    probe.run(main)


def test_head_gets_no_body(probe: Image) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            await connection.send(head("HEAD", "/big?bytes=1000") + head("GET", "/status?code=201"))
            response = await connection.response("HEAD")
            assert (response.status, response["content-length"]) == (200, "1000")
            assert (await connection.response()).status == 201

    probe.run(main)


@pytest.mark.parametrize(("method", "target"), [("CONNECT", "test:80"), ("QUERY", "/echo")])
def test_method_that_the_server_does_not_take(probe: Image, method: str, target: str) -> None:
    async def main(port: int) -> None:
        assert (await fetch(port, target, method=method)).status in (400, 405)
        assert (await fetch(port, "/echo")).status == 200

    probe.run(main)


@pytest.mark.parametrize("code", [204, 304])
def test_status_without_body_leaves_the_connection_usable(probe: Image, code: int) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            for _ in range(3):
                await connection.send(head("GET", f"/status?code={code}"))
                response = await connection.response()
                assert response.status == code
                assert "content-length" not in response
                assert "transfer-encoding" not in response

    probe.run(main)


def test_response_without_headers_or_body(probe: Image) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, "/no-body")
        assert (response.status, response["content-length"]) == (200, "0")
        assert {name for name, _ in response.headers} == {"date", "content-length"}

    probe.run(main)


def test_large_response(probe: Image) -> None:
    async def main(port: int) -> None:
        size = 20 << 20
        assert (await fetch(port, f"/big?bytes={size}")).body == b"x" * size

    probe.run(main)


def test_output_goes_to_the_container(probe: Image) -> None:
    async def main(port: int) -> None:
        await fetch(port, "/stdout?text=to+stdout")
        await fetch(port, "/stderr?text=to%20stderr")

    probe.run(main)
    assert probe.stdout == "to+stdout\n"
    assert probe.stderr == "to stderr\n"


def test_environment_is_the_components(image: Image) -> None:
    image.component("probe", "/...", more='environment = { GREETING = "h\\u00e4llo", EMPTY = "" }')

    async def main(port: int) -> None:
        assert (await fetch(port, "/env?name=GREETING")).text == "hällo"
        assert (await fetch(port, "/env?name=EMPTY")).status == 200
        for name in ("PATH", "HOME", "SPIN_HTTP_LISTEN_ADDR"):
            assert (await fetch(port, f"/env?name={name}")).status == 404

    image.run(main)


def test_clock_random_and_sockets(probe: Image) -> None:
    async def main(port: int) -> None:
        clock = (await fetch(port, "/clock")).text
        real = re.search(r"realtime (\d+)\.", clock)
        assert real is not None
        assert abs(int(real[1]) - time.time()) < 60
        numbers = {(await fetch(port, "/random")).text for _ in range(5)}
        assert len(numbers) == 5
        assert all(re.fullmatch(r"[0-9a-f]{32}\n", number) for number in numbers)
        assert (await fetch(port, "/connect")).text == "none\n"

    probe.run(main)


def test_sleeping_guests_do_not_hold_up_others(probe: Image) -> None:
    async def main(port: int) -> None:
        started = time.monotonic()
        responses = await asyncio.gather(*(fetch(port, "/sleep?ms=300") for _ in range(40)))
        assert {response.text for response in responses} == {"300\n"}
        assert 0.3 <= time.monotonic() - started < 6  # one after the other: 12 s

    probe.run(main)


def test_looping_guest_does_not_hold_up_others(probe: Image) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            await connection.send(head("GET", "/loop"))
            for _ in range(5):
                assert (await fetch(port, "/echo")).status == 200

    probe.run(main, SPIN_SHUTDOWN_TIMEOUT_SECONDS="0.1")


# Files


def test_files_are_seen_and_nothing_else(image: Image, tmp_path: Path) -> None:
    (image.root / "static").mkdir()
    (image.root / "static" / "page.html").write_text("page")
    (image.root / "static" / "link").symlink_to("../spin.toml")
    (tmp_path / "secret").write_text("secret")
    image.component("probe", "/...", more='files = [{ source = "static", destination = "/site" }]')

    async def main(port: int) -> None:
        assert (await fetch(port, "/file?path=/site/page.html")).text == "page"
        for path in (
            "/spin.toml",
            "/site/../spin.toml",
            "/site/../../secret",
            "/etc/passwd",
            "/proc/self/environ",
            "/site/link/../secret",
            "site/../../../../../../../../etc/passwd",
        ):
            response = await fetch(port, f"/file?path={path}")
            assert response.status == 404, response.text
        for path in ("/site/new", "/site/page.html", "/new", "new"):
            assert (await fetch(port, f"/write?path={path}")).status == 403

    image.run(main)
    assert (image.root / "static" / "page.html").read_text() == "page"


# Limits


def test_declared_body_beyond_the_limit_is_413_before_it_is_sent(probe: Image) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            headers = [("content-length", "1001"), ("expect", "100-continue")]
            await connection.send(head("POST", "/echo", headers))
            response = await connection.response()
            assert (response.status, response["connection"]) == (413, "close")
            assert response.text == "the body has 1001 bytes, more than 1000\n"
        assert (await fetch(port, "/echo", method="POST", body=b"x" * 1000)).status == 200

    probe.run(main, SPIN_HTTP_MAX_BODY_BYTES="1000")


def test_chunked_body_beyond_the_limit_is_413(probe: Image) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            await connection.send(head("POST", "/echo", [("transfer-encoding", "chunked")]))
            await connection.send(b"3e9\r\n" + b"x" * 1001 + b"\r\n")
            response = await connection.response()
            assert (response.status, response["connection"]) == (413, "close")
            assert response.text == "the body has more than 1000 bytes\n"

    probe.run(main, SPIN_HTTP_MAX_BODY_BYTES="1000")


def test_client_that_sends_its_whole_body_first_sees_the_413(probe: Image) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            size = 8 << 20  # more than the sockets between us hold
            await connection.send(head("POST", "/echo", [("content-length", str(size))]))
            await connection.send(b"x" * size)
            assert (await connection.response()).status == 413

    probe.run(main, SPIN_HTTP_MAX_BODY_BYTES="1000")


def test_requests_beyond_the_limit_are_503(probe: Image) -> None:
    async def main(port: int) -> None:
        async with connected(port) as first, connected(port) as second:
            for connection in (first, second):  # their bodies do not end
                await connection.send(head("POST", "/echo", [("content-length", "2")]) + b"1")
            async with asyncio.timeout(DEADLINE):
                while (response := await fetch(port, "/echo")).status != 503:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            assert response.text == "too many requests in flight\n"
            assert (await fetch(port, "/.well-known/spin/health")).status == 200
            for connection in (first, second):
                await connection.send(b"2")
                assert (await connection.response()).text == "12"
        assert (await fetch(port, "/echo")).status == 200

    probe.run(main, SPIN_MAX_INSTANCE_COUNT="2")


@pytest.mark.parametrize("path", ["/loop", "/sleep?ms=60000"])
def test_guest_that_takes_too_long_is_504(probe: Image, path: str) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, path)
        assert (response.status, response.text) == (504, "the component took too long\n")
        assert (await fetch(port, "/echo")).status == 200

    probe.run(main, SPIN_HTTP_REQUEST_TIMEOUT_SECONDS="0.2")


@pytest.mark.parametrize("path", ["/loop", "/sleep?ms=600000"])
def test_guest_whose_client_has_gone_is_ended(
    probe: Image, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def main(port: int) -> None:
        async with connected(port) as connection:
            await connection.send(head("GET", path))
            async with asyncio.timeout(DEADLINE):
                while (await fetch(port, "/echo")).status != 503:
                    pass
            connection.writer.close()
            async with asyncio.timeout(DEADLINE):
                while (await fetch(port, "/echo")).status != 200:
                    pass

    probe.run(main, SPIN_MAX_INSTANCE_COUNT="1", SPIN_HTTP_REQUEST_TIMEOUT_SECONDS="600")
    assert f"GET {path.partition('?')[0]} is given up: the client has gone" in caplog.text


def test_body_that_takes_too_long_is_504(probe: Image) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            await connection.send(head("POST", "/echo", [("content-length", "2")]) + b"1")
            assert (await connection.response()).status == 504

    probe.run(main, SPIN_HTTP_REQUEST_TIMEOUT_SECONDS="0.2")


def test_memory_beyond_the_limit_is_refused_to_the_guest(probe: Image) -> None:
    async def main(port: int) -> None:
        response = await fetch(port, "/alloc?mb=100")
        assert response.status == 507
        assert 5 < int(response.text) < 16
        assert (await fetch(port, "/alloc?mb=4")).text == "4\n"

    probe.run(main, SPIN_MAX_INSTANCE_MEMORY=str(16 << 20))


# Guests that are not well


BROKEN = [
    "/trap",
    "/abort",
    "/exit?code=0",
    "/exit?code=3",
    "/recurse",
    "/alloc-forever",
    "/bad-body-pointer",
    "/bad-header-count",
    "/bad-tag",
    "/bad-header-name",
    "/bad-header-value",
]


@pytest.mark.parametrize("path", BROKEN)
def test_failing_guest_is_an_empty_500_and_the_next_is_fine(
    probe: Image, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            for _ in range(3):
                await connection.send(head("GET", path))
                response = await connection.response()
                assert (response.status, response.body) == (500, b"")
                assert "x-injected" not in response
                await connection.send(head("GET", "/status?code=201"))
                assert (await connection.response()).status == 201

    probe.run(main, SPIN_MAX_INSTANCE_MEMORY=str(16 << 20))
    assert caplog.text.count(f"component 'probe': GET {path.partition('?')[0]} failed: ") == 3


def test_bytes_beyond_ascii_in_a_response_header_pass(probe: Image) -> None:
    """RFC 9110 calls them obs-text."""

    async def main(port: int) -> None:
        assert (await fetch(port, "/bad-utf8-header"))["x-bad"] == "\xff\xfe"

    probe.run(main)


@pytest.mark.parametrize("guest", ["response_lies", "realloc_lies"])
def test_lying_guest_is_500_and_the_next_is_fine(image: Image, guest: str) -> None:
    image.component("probe", "/...")
    image.component(guest, "/lies")

    async def main(port: int) -> None:
        for _ in range(5):
            response = await fetch(port, "/lies", method="POST", body=b"body")
            assert (response.status, response.body) == (500, b"")
            assert (await fetch(port, "/echo", method="POST", body=b"body")).text == "body"

    image.run(main)


def test_guest_whose_memory_does_not_fit_is_500(image: Image) -> None:
    image.component("probe", "/...")
    image.component("huge_memory", "/huge")

    async def main(port: int) -> None:
        for _ in range(3):
            assert (await fetch(port, "/huge")).status == 500
            assert (await fetch(port, "/echo")).status == 200

    image.run(main)


@pytest.mark.parametrize(
    "sent",
    [
        head("POST", "/echo", [("content-length", "100")]) + b"x" * 50,
        head("POST", "/echo", [("transfer-encoding", "chunked")]) + b"5\r\nab",
        head("GET", "/sleep?ms=100"),
        head("GET", "/big?bytes=30000000"),
        head("GET", "/loop"),
    ],
    ids=["body", "chunk", "sleeping", "response", "looping"],
)
def test_client_that_goes_away_leaves_the_server_well(
    probe: Image, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(port: int) -> None:
        for _ in range(5):
            async with connected(port) as connection:
                await connection.send(sent)
                connection.abort()
        for _ in range(5):
            assert (await fetch(port, "/echo")).status == 200

    probe.run(main, SPIN_HTTP_REQUEST_TIMEOUT_SECONDS="1")
    assert "Traceback" not in caplog.text


# The WAGI executor


@pytest.fixture
def wagi(image: Image) -> Image:
    image.component("wagi_probe", "/wagi/...", trigger='executor = { type = "wagi" }')
    return image


@pytest.mark.parametrize(
    ("mode", "status", "body"),
    [
        ("bad-header", 500, ""),
        ("stderr", 200, "normal\n"),
        ("sleep&ms=20", 200, "normal\n"),
        ("big&bytes=300000", 200, "x" * 300_000),
    ],
)
def test_wagi_modes(wagi: Image, mode: str, status: int, body: str) -> None:
    async def main(port: int) -> None:
        async with connected(port) as connection:
            for _ in range(2):
                await connection.send(head("GET", f"/wagi/x?mode={mode}"))
                response = await connection.response()
                assert (response.status, response.text) == (status, body)

    wagi.run(main)
    assert wagi.stderr == ("a line on standard error\n" * 2 if mode == "stderr" else "")
    assert wagi.stdout == ""


@pytest.mark.parametrize("size", [0, 1, 65_536, 3 << 20])
def test_wagi_body_is_stdin(wagi: Image, size: int) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[:size]

    async def main(port: int) -> None:
        response = await fetch(port, "/wagi?mode=echo", method="POST", body=body)
        assert response.body == body

    wagi.run(main)


def test_wagi_loop_is_504(wagi: Image) -> None:
    async def main(port: int) -> None:
        assert (await fetch(port, "/wagi?mode=loop")).status == 504
        assert (await fetch(port, "/wagi")).status == 200

    wagi.run(main, SPIN_HTTP_REQUEST_TIMEOUT_SECONDS="0.2")


# Over time


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def test_three_thousand_requests_leave_nothing(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither memory nor descriptors, whatever became of the requests."""
    # pytest keeps every record of a test.
    monkeypatch.setattr(logging.getLogger("containerd_shim_spin_v1"), "disabled", True)
    monkeypatch.setattr(
        logging.getLogger("containerd_shim_spin_v1.triggers.http"), "disabled", True
    )
    image.component("probe", "/...")
    image.component("wagi_probe", "/wagi", trigger='executor = { type = "wagi" }')
    paths = ["/echo", "/headers", "/trap", "/wagi", "/bad-tag", "/wagi?mode=trap", "/sleep?ms=0"]

    async def main(port: int) -> None:
        async def some(count: int) -> None:
            async with connected(port) as connection:
                for number in range(count):
                    await connection.send(head("GET", paths[number % len(paths)]))
                    await connection.response()

        def descriptors() -> int:
            return len(list(Path("/proc/self/fd").iterdir()))

        await some(1000)
        gc.collect()
        memory, opened = resident_bytes(), descriptors()
        for _ in range(3):
            await some(1000)
        gc.collect()
        # A leaked store, or a request's strings, would be several KiB for each.
        assert resident_bytes() - memory < 3000 * 1024
        assert descriptors() <= opened + 1

    image.run(main)
