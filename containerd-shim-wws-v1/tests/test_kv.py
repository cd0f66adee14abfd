"""Key-value stores as workers use them: what is kept, what is not, and for whom."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from containerd_shim_wws_v1.kv.base import (
    Changes,
    StoreError,
    StoreFullError,
    changes_between,
    check_size,
)
from containerd_shim_wws_v1.kv.directory import DirectoryStore
from containerd_shim_wws_v1.kv.redis import RedisStore
from containerd_shim_wws_v1.kv.stores import choose_store
from containerd_shimkit.environment import SettingError
from containerd_shimkit.redis_client.address import RedisAddress
from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.http import Response, fetch
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.redis import running_redis
from containerd_shimkit.tls import TrustedCertificates

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


@pytest.fixture(scope="module")
def redis() -> Iterator[Server]:
    with running_redis("--requirepass", "s3cret") as server:
        yield server


def test_redis(stores: Image, redis: Server) -> None:
    kv = f"redis://:s3cret@{redis.host}:{redis.port}/1"
    stores.run(check_stores, WWS_KV=kv)

    async def after_a_restart(port: int) -> None:
        assert json.loads((await fetch(port, "/b?mode=kv&key=x&value=")).text) == {"k": "1"}

    stores.run(after_a_restart, WWS_KV=kv)


def test_directory(stores: Image, tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    kv = f"directory:{directory}"
    stores.run(check_stores, WWS_KV=kv)
    assert sorted(path.name for path in directory.iterdir()) == [
        *("other.json", "other.lock", "shared.json", "shared.lock"),
    ]
    assert json.loads((directory / "shared.json").read_text()) == {"k": "1"}

    async def after_a_restart(port: int) -> None:
        assert json.loads((await fetch(port, "/b?mode=kv&key=x&value=")).text) == {"k": "1"}

    stores.run(after_a_restart, WWS_KV=kv)


def test_redis_that_fails(stores: Image, redis: Server, caplog: pytest.LogCaptureFixture) -> None:
    async def main(port: int) -> None:
        assert (await fetch(port, "/a")).status == 500
        assert (await fetch(port, "/none")).status == 200

    host, port = free_address()
    stores.run(main, WWS_KV=f"redis://:wr0ng@{host}:{port}")
    assert f"the store 'shared': redis://{host}:{port}: cannot connect" in caplog.text
    stores.run(main, WWS_KV=f"redis://:wr0ng@{redis.host}:{redis.port}")
    assert "WRONGPASS" in caplog.text
    assert "wr0ng" not in caplog.text


def test_what_two_have_added_at_once_can_be_read_and_removed(redis: Server) -> None:
    """Nobody else could make room, and the namespace were lost to its workers."""
    address = RedisAddress.parse(f"redis://:s3cret@{redis.host}:{redis.port}/3")

    async def main() -> None:
        store = RedisStore(address, TrustedCertificates({}))
        try:
            for key in "abcd":
                await store.change("n", Changes({key: "v" * (15 << 20)}))
            assert (await store.read("n")).keys() == set("abcd")
            await store.change("n", Changes({}, frozenset("abc")))
            await store.change("n", Changes({key: "v" * (16 << 20) for key in "abcd"}))
            with pytest.raises(StoreFullError, match="'n' would have more than 67108864 bytes"):
                await store.read("n")
        finally:
            await store.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_redis_refuses_a_change(stores: Image, redis: Server) -> None:
    """The connection is as good as before."""
    address = RedisAddress.parse(f"redis://:s3cret@{redis.host}:{redis.port}/2")

    async def main() -> None:
        store = RedisStore(address, TrustedCertificates({}))
        try:
            await store._call("n", [(b"SET", b"wws:kv:n", b"no hash")])
            with pytest.raises(StoreError, match="WRONGTYPE"):
                await store.read("n")
            with pytest.raises(StoreError, match="WRONGTYPE"):
                await store.change("n", Changes({"a": "1"}, frozenset({"b"})))
            await store.change("m", Changes({"a": "1", "b": "2"}))
            await store.change("m", Changes({"c": "3"}, frozenset({"b"})))
            assert await store.read("m") == {"a": "1", "c": "3"}
            assert await store.read("missing") == {}
        finally:
            await store.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "{" * 100_000, b"\xff"])
def test_file_that_is_no_store(tmp_path: Path, content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "n.json").write_bytes(data)

    async def main() -> None:
        store = DirectoryStore(tmp_path)
        with pytest.raises(StoreError, match=r"n\.json is no JSON object of strings"):
            await store.read("n")
        with pytest.raises(StoreError, match=r"n\.json is no JSON object of strings"):
            await store.change("n", Changes({"a": "1"}))

    asyncio.run(main())
    assert (tmp_path / "n.json").read_bytes() == data


def test_files_that_nobody_follows(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"a": "secret"}')
    directory = tmp_path / "kv"
    directory.mkdir()
    (directory / "link.json").symlink_to(secret)
    os.mkfifo(directory / "fifo.json")
    (directory / "locked.lock").symlink_to(secret)

    async def main() -> None:
        store = DirectoryStore(directory)
        for namespace in ("link", "fifo"):
            with pytest.raises(StoreError, match=f"the store '{namespace}'"):
                await store.read(namespace)
        with pytest.raises(StoreError, match="the store 'locked'"):
            await store.change("locked", Changes({"a": "1"}))
        # A namespace is a name, whatever it looks like.
        await store.change("../secret", Changes({"a": "1"}))
        await store.change("x/y.z", Changes({"a": "2"}))
        with pytest.raises(StoreError, match="too long"):
            await store.read("ü" * 100)

    asyncio.run(main())
    assert secret.read_text() == '{"a": "secret"}'
    assert (directory / "%2E%2E%2Fsecret.json").exists()
    assert (directory / "x%2Fy%2Ez.json").exists()


def test_processes_share_a_directory(tmp_path: Path) -> None:
    """Two stores see each other's changes, and lose none of those made at once."""

    async def main() -> None:
        first, second = DirectoryStore(tmp_path), DirectoryStore(tmp_path)
        await asyncio.gather(
            *(
                store.change("n", Changes({f"{name}{n}": str(n)}))
                for n in range(20)
                for name, store in (("a", first), ("b", second))
            )
        )
        assert await first.read("n") == await second.read("n")
        assert len(await first.read("n")) == 40

    asyncio.run(main())


def test_time_of_a_file_only_goes_on(tmp_path: Path) -> None:
    """By it others see a change, also where its number is one that they know."""

    async def main() -> None:
        store = DirectoryStore(tmp_path)
        await store.change("n", Changes({"k": "1"}))
        (file,) = tmp_path.glob("*.json")
        later = file.stat().st_mtime_ns + 10**12
        os.utime(file, ns=(later, later))
        await store.change("n", Changes({"k": "2"}))
        assert file.stat().st_mtime_ns > later

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_lock_that_others_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("containerd_shim_wws_v1.kv.directory.LOCK_SECONDS", 0.05)
    with (tmp_path / "n.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        async def main() -> None:
            with pytest.raises(StoreError, match=r"the store 'n': others have had it for 0.05 s"):
                await DirectoryStore(tmp_path).change("n", Changes({"a": "1"}))

        asyncio.run(main())
    assert not (tmp_path / "n.json").exists()


def test_lock_that_others_keep_holds_up_its_namespace_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are few threads, which names are looked up with as well."""
    monkeypatch.setattr("containerd_shim_wws_v1.kv.directory.LOCK_SECONDS", 20)

    async def main() -> None:
        store = DirectoryStore(tmp_path)
        with (tmp_path / "n.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            changes = [
                asyncio.create_task(store.change("n", Changes({str(n): ""}))) for n in range(40)
            ]
            await asyncio.sleep(0)
            async with asyncio.timeout(10):
                await store.change("other", Changes({"a": "1"}))
                assert await store.read("other") == {"a": "1"}
        await asyncio.gather(*changes)
        assert len(await store.read("n")) == 40

    asyncio.run(main())


def test_change_that_is_cut_off_is_not_made(tmp_path: Path) -> None:
    """Whoever asked for it was told that it failed."""

    async def main() -> None:
        store = DirectoryStore(tmp_path)
        with (tmp_path / "n.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            change = asyncio.create_task(store.change("n", Changes({"a": "1"})))
            await asyncio.sleep(0)
            change.cancel()
            async with asyncio.timeout(30):
                with pytest.raises(asyncio.CancelledError):
                    await change
        await store.change("n", Changes({"b": "2"}))
        assert await store.read("n") == {"b": "2"}
        assert not list(tmp_path.glob("*.new"))

    asyncio.run(main())


def test_change_that_is_cut_off_at_any_moment_is_whole_or_none(tmp_path: Path) -> None:
    async def main() -> None:
        store = DirectoryStore(tmp_path)
        for turns in range(50):
            changes = Changes({"a": str(turns), "b": str(turns)})
            change = asyncio.create_task(store.change("n", changes))
            for _ in range(turns):
                await asyncio.sleep(0)
            change.cancel()
            await asyncio.wait((change,))
            values = await store.read("n")
            assert values.get("a") == values.get("b")
        await store.change("n", Changes({"a": "x"}))
        assert (await store.read("n"))["a"] == "x"

    asyncio.run(main())


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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mongodb://user:s3cret@host", "WWS_KV is neither memory, nor directory:/path"),
        ("redis://user:s3cret@", "WWS_KV: the Redis address is not of the form redis://"),
        ("directory:data", "WWS_KV: 'data' is no absolute path"),
        ("directory:/proc/nowhere", "WWS_KV: /proc/nowhere: No such file or directory"),
    ],
)
def test_store_that_is_none(text: str, reason: str) -> None:
    with pytest.raises(SettingError) as caught:
        choose_store(text, TrustedCertificates({}))
    assert str(caught.value).startswith(reason)
    assert "s3cret" not in str(caught.value)
