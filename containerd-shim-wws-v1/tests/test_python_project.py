"""Workers in Python, served by the shim: the engine that `make engines` builds, as pods have it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from containerd_shimkit.testing.http import fetch
from language_engine import ENGINES

Image = Any  # of conftest.py

pytestmark = pytest.mark.xdist_group("python-engine")  # where it is compiled

FAILED = b"<p>There was an error running this function</p>"


@pytest.fixture
def project(image: Image) -> Image:
    assert (ENGINES / "python.wasm").exists(), "the Python engine is not built: run `make engines`"
    return image


def test_requests_are_answered(project: Image) -> None:
    project.file(
        "[name].py",
        """
import os, random

def worker(request):
    print("asked")
    body = f"{os.environ['GREETING']} {request.params['name']} {request.body!r}"
    return Response(body, 201, {"set-cookie": ["a=1", "b=2"], "x-random": random.random()})
""",
    )
    project.file("[name].toml", 'version = "1"\n[vars]\nGREETING = "hello"\n')

    async def main(port: int) -> None:
        response = await fetch(port, "/you", method="POST", body=b"\xff")
        assert (response.status, response.text) == (201, "hello you b'\\xff'")
        assert [value for name, value in response.headers if name == "set-cookie"] == ["a=1", "b=2"]
        answers = await asyncio.gather(*(fetch(port, "/you") for _ in range(20)))
        assert {each.text for each in answers} == {"hello you ''"}
        drawn = {dict(each.headers)["x-random"] for each in answers}
        assert len(drawn) == 20

    project.run(main)
    assert project.stdout == "asked\n" * 21


def test_values_are_kept(project: Image) -> None:
    project.file(
        "counter.py",
        """
def worker(request):
    count = int(Cache.get("count", "0")) + 1
    Cache.set("count", count)
    if request.method == "DELETE":
        raise RuntimeError("not counted")
    return Response(str(count))
""",
    )
    project.file("counter.toml", 'version = "1"\n[data.kv]\nnamespace = "a"\n')

    async def main(port: int) -> None:
        assert (await fetch(port, "/counter")).text == "1"
        failed = await fetch(port, "/counter", method="DELETE")
        assert (failed.status, failed.body) == (500, FAILED)
        assert (await fetch(port, "/counter")).text == "2"

    project.run(main)
    assert 'File "/counter.py", line 6, in worker' in project.stderr
    assert "RuntimeError: not counted" in project.stderr


def test_workers_that_import_the_same_share_its_memory(project: Image) -> None:
    """Each has 4 MB; and hashes, which names have with them, are as those of the first."""
    for number in range(8):
        project.file(
            f"{number}.py",
            f"""
import dataclasses, datetime, json, logging, typing, urllib.parse

def worker(request):
    return Response(json.dumps([{number}, hash("a")]))
""",
        )
    project.file("own.py", "def worker(request):\n    return Response(str(hash('a')))\n")
    project.file("own.toml", 'version = "1"\n[vars]\nA = "b"\n')

    async def main(port: int) -> None:
        answers = [json.loads((await fetch(port, f"/{number}")).text) for number in range(8)]
        assert [number for number, _ in answers] == list(range(8))
        hashes = {value for _, value in answers}
        assert len(hashes) == 1
        assert int((await fetch(port, "/own")).text) not in hashes

    project.run(main, WWS_MAX_SNAPSHOT_MEMORY=str(10 << 20))


def test_sleeping_requests_wait_together(project: Image) -> None:
    project.file(
        "index.py",
        """
import asyncio

async def worker(request):
    await asyncio.sleep(0.01)
    return Response("awake")
""",
    )

    async def main(port: int) -> None:
        answers = await asyncio.gather(*(fetch(port, "/") for _ in range(30)))
        assert {each.text for each in answers} == {"awake"}

    project.run(main)


def test_deep_recursion_leaves_the_fiber_alone(project: Image) -> None:
    project.file("a.py", "def f(x): return sorted([1], key=f)\ndef worker(request): f(1)\n")

    async def main(port: int) -> None:
        for _ in range(2):
            assert (await fetch(port, "/a")).status == 500

    project.run(main)
    assert project.stderr.count("RecursionError: ") == 2
