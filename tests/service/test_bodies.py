"""Documents on their way in share memory: who finds no room waits, and is told in the end."""

from __future__ import annotations

import asyncio

import pytest

from pagepool.errors import BusyError
from pagepool_service.routes import bodies
from pagepool_service.routes.bodies import BodyMemory


def test_room_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        memory = BodyMemory(100)
        go_on = asyncio.Event()

        async def body(size: int) -> int:
            async with memory.hold(size):
                await go_on.wait()
                return size

        first = asyncio.create_task(body(80))
        await asyncio.sleep(0)
        second = asyncio.create_task(body(40))
        small = asyncio.create_task(body(20))
        await asyncio.sleep(0.01)
        assert memory.held == 100, "the second waits, and what has room does not wait for it"
        monkeypatch.setattr(bodies, "_LONGEST_WAIT_S", 0.01)
        with pytest.raises(BusyError, match="100 bytes of documents are on their way in: try again in a moment"):
            await body(1)
        go_on.set()
        assert list(await asyncio.gather(first, second, small)) == [80, 40, 20]
        assert memory.held == 0
        async with memory.hold(1000):
            assert memory.held == 1000, "one that is larger than all is taken when there is no other"

    asyncio.run(run())


def test_what_hardly_comes_is_given_up_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slowest first, and no more than it takes; not what is all there, and none as long as nobody waits."""
    monkeypatch.setattr(bodies, "_OWN_S", 0.0)
    monkeypatch.setattr(bodies, "_LOOK_S", 0.01)

    async def run() -> None:
        memory = BodyMemory(100)
        never = asyncio.Event()

        async def body(size: int, came: int, *, complete: bool = False) -> None:
            async with memory.hold(size) as coming:
                coming.came(came)
                if complete:
                    coming.complete()
                await never.wait()

        there = asyncio.create_task(body(20, 0, complete=True))
        quick = asyncio.create_task(body(20, 1 << 40))
        await asyncio.sleep(0.01)
        slowest = asyncio.create_task(body(30, 0))
        await asyncio.sleep(0.01)
        slow = asyncio.create_task(body(30, 1))
        await asyncio.sleep(0.1)
        assert memory.held == 100
        async with memory.hold(25):
            with pytest.raises(BusyError, match="0 bytes came of a document, too slowly while others wait"):
                await slowest
            assert not slow.done()
        async with memory.hold(50):
            with pytest.raises(BusyError, match="1 bytes came"):
                await slow
        assert memory.held == 40
        monkeypatch.setattr(bodies, "_LONGEST_WAIT_S", 0.05)
        with pytest.raises(BusyError, match="on their way in"):
            await body(70, 0)
        for task in (there, quick):
            assert task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert memory.held == 0

    asyncio.run(run())


def test_small_ones_find_room_beside_any_number_of_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_LONGEST_WAIT_S", 0.01)

    async def run() -> None:
        memory = BodyMemory(1 << 20)
        async with memory.hold(300 << 10), memory.hold(400 << 10):
            with pytest.raises(BusyError):
                async with memory.hold(100 << 10):
                    pass
            async with memory.hold(64 << 10), memory.hold(64 << 10), memory.hold(64 << 10):
                assert memory.held == 892 << 10

    asyncio.run(run())


def test_large_documents_are_parsed_few_at_a_time() -> None:
    async def run() -> None:
        memory, parsed = BodyMemory(1 << 30), 0
        most = 0

        async def parse(size: int) -> None:
            nonlocal parsed, most
            async with memory.parsing(size):
                parsed += 1
                most = max(most, parsed)
                await asyncio.sleep(0.001)
                parsed -= 1

        await asyncio.gather(*(parse(1 << 20) for _ in range(10)))
        assert most == 2
        await asyncio.gather(*(parse(1000) for _ in range(10)))
        assert most == 10

    asyncio.run(run())
