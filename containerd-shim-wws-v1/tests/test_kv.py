"""Key-value stores as workers use them: what is kept, what is not, and for whom."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from containerd_shim_wws_v1.kv.base import Changes, StoreFullError, changes_between, check_size
from containerd_shimkit.testing.http import Response, fetch

Image = Any  # of conftest.py


def config(namespace: str) -> str:
    return f'version = "1"\n[data.kv]\nnamespace = "{namespace}"\n'


def test_changes() -> None:
    before = {"same": "1", "other": "2", "gone": "3"}
    changes = changes_between(before, {"same": "1", "other": "x", "new": ""})
    assert changes == Changes({"other": "x", "new": ""}, frozenset({"gone"}))
    assert changes.apply({"gone": "z", "theirs": "t"}) == {"other": "x", "new": "", "theirs": "t"}
    assert not changes_between(before, dict(before))


def test_size() -> None:
    check_size("n", {"k": "v" * ((16 << 20) - 1)})
    with pytest.raises(StoreFullError, match="'n' would have more than 16777216 bytes"):
        check_size("n", {"k": "v" * (16 << 20)})
    with pytest.raises(StoreFullError, match="'n' would have more than 16777216 bytes"):
        check_size("n", {"k": "ü" * (8 << 20)})
    with pytest.raises(StoreFullError, match="'n' would have more than 100000 keys"):
        check_size("n", {str(n): "" for n in range(100_001)})


class Stores:
    """The workers /a and /b share a namespace; /other has one of its own, /none has none."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def get(self, query: str) -> Response:
        return await fetch(self._port, query)

    async def values(self, worker: str) -> dict[str, str]:
        response = await fetch(self._port, f"/{worker}?mode=request")
        return json.loads(response.body)["kv"] if response.status == 200 else {}

    async def add(self, worker: str, key: str, value: str, more: str = "") -> int:
        query = f"/{worker}?mode=kv&key={key}&value={value}{more}"
        return (await fetch(self._port, query)).status


@pytest.fixture
def stores(image: Image) -> Image:
    image.worker("a.wasm", config=config("shared"))
    image.worker("b.wasm", config=config("shared"))
    image.worker("other.wasm", config=config("other"))
    image.worker("none.wasm")
    return image


async def check_stores(port: int) -> None:
    """What holds whatever keeps the values. The probe's other modes empty the store."""
    found = Stores(port)
    assert await found.add("a", "k", "1") == 200
    assert await found.add("b", "l", "2") == 200
    assert await found.add("other", "m", "3") == 200
    assert await found.add("none", "x", "4") == 200
    assert (await found.get("/a?mode=kv&key=z&value=9")).text == '{"k":"1","l":"2"}'
    assert (await found.get("/other?mode=kv&key=m&value=5")).text == '{"m":"3"}'
    assert (await found.get("/none?mode=kv&key=x&value=5")).text == "{}"
    # Only a worker that succeeds changes anything.
    assert await found.add("a", "bad", "1", "&code=1") == 500
    assert json.loads((await found.get("/b?mode=kv&key=k&value=2")).text) == {
        "k": "1",
        "l": "2",
        "z": "9",
    }
    assert (await found.get("/a?mode=clear")).status == 200
    assert (await found.get("/a?mode=kv&key=k&value=1")).text == "{}"
    assert (await found.get("/other?mode=kv&key=m&value=6")).text == '{"m":"5"}'


def test_memory(stores: Image) -> None:
    stores.run(check_stores)


def test_workers_at_once_lose_nothing(stores: Image) -> None:
    async def main(port: int) -> None:
        found = Stores(port)
        await asyncio.gather(*(found.add("a", f"k{n}", str(n)) for n in range(20)))
        assert json.loads((await found.get("/a?mode=kv&key=z&value=")).text) == {
            f"k{n}": str(n) for n in range(20)
        }

    stores.run(main)


def test_store_that_is_full(
    stores: Image, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("containerd_shim_wws_v1.kv.base.MAX_NAMESPACE_BYTES", 20)

    async def main(port: int) -> None:
        found = Stores(port)
        assert await found.add("a", "k", "0123456789") == 200
        assert await found.add("a", "l", "0123456789") == 500
        assert (await found.get("/a?mode=kv&key=z&value=")).text == '{"k":"0123456789"}'

    stores.run(main)
    assert "the store 'shared' would have more than 20 bytes" in caplog.text


def test_unknown_kind_is_refused(image: Image) -> None:
    image.worker()
    with pytest.raises(Exception, match="WWS_KV is neither memory"):
        image.prepare(WWS_KV="mongodb://user:secret@host")
