"""What is held back, and when it is sent."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from containerd_shimkit.http import corked
from containerd_shimkit.http.corked import Cork, CorkedTransport


class Recorder(asyncio.Transport):
    """Remembers what reaches the socket, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def writelines(self, list_of_data: Any) -> None:
        self.calls.append(b"".join(list_of_data))

    def close(self) -> None:
        self.calls.append("close")

    def write_eof(self) -> None:
        self.calls.append("eof")

    def abort(self) -> None:
        self.calls.append("abort")

    def is_closing(self) -> bool:
        return False


async def two() -> tuple[Cork, CorkedTransport, CorkedTransport, Recorder, Recorder]:
    cork = Cork(asyncio.get_running_loop())
    first, second = Recorder(), Recorder()
    return cork, CorkedTransport(first, cork), CorkedTransport(second, cork), first, second


def test_head_and_body_are_one_piece_at_the_end_of_the_turn() -> None:
    async def main() -> None:
        _, one, other, first, second = await two()
        one.write(b"head")
        other.write(b"other")
        one.write(b"body")
        assert first.calls == second.calls == []
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert first.calls == [b"headbody"]
        assert second.calls == [b"other"]

    asyncio.run(main())


class Broken(Recorder):
    """What uvloop's does when the connection was reset."""

    def writelines(self, list_of_data: Any) -> None:
        raise RuntimeError("the handler is closed")


def test_connection_that_cannot_be_written_to_is_no_harm_to_others() -> None:
    async def main() -> None:
        cork = Cork(asyncio.get_running_loop())
        broken, other = Broken(), Recorder()
        first, second = CorkedTransport(broken, cork), CorkedTransport(other, cork)
        first.write(b"lost")
        second.write(b"answer")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (broken.calls, other.calls) == (["abort"], [b"answer"])

    asyncio.run(main())


def test_nothing_is_written_to_a_closing_connection() -> None:
    async def main() -> None:
        cork, one, _, first, _ = await two()
        one.is_closing = lambda: True  # type: ignore[method-assign]
        one.write(b"a")
        cork.note_complete()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert first.calls == []

    asyncio.run(main())


def test_closing_sends_first() -> None:
    async def main() -> None:
        _, one, other, first, second = await two()
        one.write(b"a")
        one.close()
        other.write(b"b")
        other.write_eof()
        assert first.calls == [b"a", "close"]
        assert second.calls == [b"b", "eof"]

    asyncio.run(main())


def test_aborting_sends_nothing() -> None:
    async def main() -> None:
        _, one, _, first, _ = await two()
        one.write(b"a")
        one.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert first.calls == ["abort"]

    asyncio.run(main())


def test_large_pieces_are_not_held() -> None:
    async def main() -> None:
        _, one, _, first, _ = await two()
        one.write(b"head")
        one.write(bytes(1 << 20))
        assert first.calls == [b"head" + bytes(1 << 20)]

    asyncio.run(main())


def test_nothing_is_held_for_long(monkeypatch: Any) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    async def main() -> None:
        nonlocal now
        cork, one, other, first, second = await two()
        one.write(b"a")
        cork.note_complete()
        assert first.calls == []
        now += 2 * corked._TOO_LONG_SECONDS
        other.write(b"b")
        cork.note_complete()
        assert (first.calls, second.calls) == ([b"a"], [b"b"])
        # A guest has computed for long: for a while nothing is held.
        other.write(b"c")
        cork.note_complete()
        assert second.calls == [b"b", b"c"]
        now += 2 * corked._PAUSE_SECONDS
        other.write(b"d")
        cork.note_complete()
        assert second.calls == [b"b", b"c"]

    asyncio.run(main())
