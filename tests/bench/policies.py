"""Eviction policies to compare the pool's own with: each as the literature has it, over bytes instead of slots."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol


class Policy(Protocol):
    """What `pagepool.pool.policy.S3Fifo` is, too."""

    def insert(self, name: bytes, size: int) -> None: ...
    def access(self, name: bytes) -> None: ...
    def plan_victim(self) -> tuple[bytes, int] | None: ...


class Fifo:
    """First in, first out."""

    def __init__(self) -> None:
        self.queue: OrderedDict[bytes, int] = OrderedDict()

    def insert(self, name: bytes, size: int) -> None:
        """To the end."""
        self.queue[name] = size

    def access(self, name: bytes) -> None:
        """Means nothing."""

    def plan_victim(self) -> tuple[bytes, int] | None:
        """From the beginning."""
        return self.queue.popitem(last=False) if self.queue else None


class Lru(Fifo):
    """Least recently used."""

    def access(self, name: bytes) -> None:
        """To the end."""
        self.queue.move_to_end(name)


class Sieve:
    """SIEVE (NSDI 2024): a hand goes from the oldest to the newest, evicts what was not visited since it came by."""

    def __init__(self) -> None:
        self._sizes: dict[bytes, int] = {}
        self._newer: dict[bytes, bytes | None] = {}
        self._older: dict[bytes, bytes | None] = {}
        self._head: bytes | None = None
        self._tail: bytes | None = None
        self._hand: bytes | None = None
        self._visited: set[bytes] = set()

    def insert(self, name: bytes, size: int) -> None:
        """At the head."""
        self._sizes[name] = size
        self._newer[name], self._older[name] = None, self._head
        if self._head is not None:
            self._newer[self._head] = name
        self._head = name
        if self._tail is None:
            self._tail = name

    def access(self, name: bytes) -> None:
        """Noted, and not moved."""
        self._visited.add(name)

    def plan_victim(self) -> tuple[bytes, int] | None:
        """The first that was not visited, from the hand on."""
        if self._tail is None:
            return None
        hand = self._hand or self._tail
        while hand in self._visited:
            self._visited.remove(hand)
            hand = self._newer[hand] or self._tail
        newer, older = self._newer.pop(hand), self._older.pop(hand)
        self._hand = newer
        if newer is None:
            self._head = older
        else:
            self._older[newer] = older
        if older is None:
            self._tail = newer
        else:
            self._newer[older] = newer
        return hand, self._sizes.pop(hand)


class TwoQueues:
    """2Q (VLDB 1994), full version: a quarter for what came once, names of half as much, the rest by LRU."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._in: OrderedDict[bytes, int] = OrderedDict()
        self._out: OrderedDict[bytes, int] = OrderedDict()
        self._main: OrderedDict[bytes, int] = OrderedDict()
        self._in_bytes = self._out_bytes = 0

    def insert(self, name: bytes, size: int) -> None:
        """To the main queue if its name is still known."""
        if name in self._out:
            self._out_bytes -= self._out.pop(name)
            self._main[name] = size
        else:
            self._in[name] = size
            self._in_bytes += size

    def access(self, name: bytes) -> None:
        """Counts in the main queue only."""
        if name in self._main:
            self._main.move_to_end(name)

    def plan_victim(self) -> tuple[bytes, int] | None:
        """Of what came once, if that is over its share."""
        if self._in and (self._in_bytes > self._budget // 4 or not self._main):
            name, size = self._in.popitem(last=False)
            self._in_bytes -= size
            self._out[name] = size
            self._out_bytes += size
            while self._out_bytes > self._budget // 2 and len(self._out) > 1:
                self._out_bytes -= self._out.popitem(last=False)[1]
            return name, size
        return self._main.popitem(last=False) if self._main else None


class Arc:
    """ARC (FAST 2003), over bytes: two LRU queues and the names of what left each move the border between them."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._target = 0
        self._once: OrderedDict[bytes, int] = OrderedDict()
        self._often: OrderedDict[bytes, int] = OrderedDict()
        self._gone_once: OrderedDict[bytes, int] = OrderedDict()
        self._gone_often: OrderedDict[bytes, int] = OrderedDict()
        self._bytes = dict.fromkeys(("once", "often", "gone_once", "gone_often"), 0)

    def insert(self, name: bytes, size: int) -> None:
        """A name that is still known says which of the queues was too short."""
        if name in self._gone_once:
            ratio = max(1.0, self._bytes["gone_often"] / max(1, self._bytes["gone_once"]))
            self._target = min(self._budget, self._target + int(size * ratio))
            self._bytes["gone_once"] -= self._gone_once.pop(name)
        elif name in self._gone_often:
            ratio = max(1.0, self._bytes["gone_once"] / max(1, self._bytes["gone_often"]))
            self._target = max(0, self._target - int(size * ratio))
            self._bytes["gone_often"] -= self._gone_often.pop(name)
        else:
            self._once[name] = size
            self._bytes["once"] += size
            return
        self._often[name] = size
        self._bytes["often"] += size

    def access(self, name: bytes) -> None:
        """To the end of the queue of what was used again."""
        if name in self._once:
            size = self._once.pop(name)
            self._bytes["once"] -= size
            self._bytes["often"] += size
            self._often[name] = size
        else:
            self._often.move_to_end(name)

    def plan_victim(self) -> tuple[bytes, int] | None:
        """Of the queue that is over its share."""
        if self._once and (self._bytes["once"] > self._target or not self._often):
            return self._leave(self._once, "once", self._gone_once, "gone_once")
        if self._often:
            return self._leave(self._often, "often", self._gone_often, "gone_often")
        return None

    def _leave(
        self, queue: OrderedDict[bytes, int], key: str, names: OrderedDict[bytes, int], names_key: str
    ) -> tuple[bytes, int]:
        name, size = queue.popitem(last=False)
        self._bytes[key] -= size
        names[name] = size
        self._bytes[names_key] += size
        while self._bytes[names_key] > self._budget and len(names) > 1:
            self._bytes[names_key] -= names.popitem(last=False)[1]
        return name, size
