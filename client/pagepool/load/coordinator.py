r"""What a coordinator knows of its clients: who has come, who is ready, works, is done, has failed, or is lost.

    joined -> ready -> working -> done
      \--------\---------\------> failed (it said so), lost (nothing was heard of it)

State only: requests come through `server`, time is asked for, and nothing blocks. Thread-safe.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pagepool.errors import BusyError, InvalidError
from pagepool.load.footprint import Footprint
from pagepool.load.measures import Measures
from pagepool.load.plan import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.load.plan import LoadPlan

JOINED, READY, WORKING, DONE, FAILED, LOST = "joined", "ready", "working", "done", "failed", "lost"
_OVER: Final = (DONE, FAILED, LOST)


@dataclass(slots=True)
class ClientState:
    """A client.

    Args:
        number: from 1.
        host: that it says it runs on.
        pid: its process there.
        phase: see the module.
        heard: when it was heard of last, by the coordinator's clock.
        reason: why it failed, or is thought to be lost.
        counts: what it told last: ``count``, ``bytes``, ``errors``, ``mismatches``.
        ready: the newest version that it has pushed.
        measures: what it handed in, in the end.
        before, after: what it took.
        seconds: it worked.
        cpu_s: processor time meanwhile.
        manifests: of the versions that it pushed.
    """

    number: int
    host: str
    pid: int
    phase: str
    heard: float
    reason: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    ready: int = 0
    measures: Measures | None = None
    before: Footprint = field(default_factory=Footprint)
    after: Footprint = field(default_factory=Footprint)
    seconds: float = 0.0
    cpu_s: float = 0.0
    manifests: tuple[str, ...] = ()

    @property
    def over(self) -> bool:
        """Whether nothing more is expected of it."""
        return self.phase in _OVER


class Coordinator:
    """A load test's clients.

    Args:
        plan: what they are told.
        lost_s: a client that was not heard of for so long is lost.
        clock: seconds that only go forward.
    """

    def __init__(self, plan: LoadPlan, lost_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan = plan
        self._lost_s, self._clock = lost_s, clock
        self._clients: dict[int, ClientState] = {}
        self._lock = threading.Lock()
        self._stop = False
        self.went: float | None = None
        """When clients were told to begin; None before."""

    # -- what clients say ---------------------------------------------------------------------------------------

    def join(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A client wants to take part.

        Raises:
            BusyError: the test has begun, or there are enough.
            InvalidError: it speaks another version.
        """
        if fields.get("protocol") != PROTOCOL:
            raise InvalidError(fields.get("protocol"), f"is not the version of this coordinator, {PROTOCOL}")
        with self._lock:
            if self.went is not None or self._stop:
                raise BusyError("the load test has begun already; this client comes too late")
            if len(self._clients) >= self.plan.clients:
                raise BusyError(f"the load test has its {self.plan.clients} clients already; see --clients")
            number = len(self._clients) + 1
            host, pid = str(fields.get("host", "")), int(fields.get("pid", 0))
            self._clients[number] = ClientState(number, host, pid, JOINED, self._clock())
        return {"client": number, "plan": self.plan.to_json()}

    def ready(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A client is ready, and asks whether to begin."""
        with self._lock:
            client = self._heard(fields)
            if client.phase == JOINED:
                client.phase = READY
            go = self.went is not None and client.phase in (READY, WORKING)
            if go:
                client.phase = WORKING
            return {"go": go}

    def beat(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A client is alive, and tells how far it is. Answers what others have published, and whether to stop."""
        with self._lock:
            client = self._heard(fields)
            client.counts = {name: int(fields.get(name, 0)) for name in ("count", "bytes", "errors", "mismatches")}
            client.ready = max(client.ready, int(fields.get("ready", 0)))
            published = {one.number: one.ready for one in self._clients.values() if one.ready}
            return {"stop": self._stop or client.phase == LOST, "published": published}

    def failed(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A client ends with an error."""
        with self._lock:
            client = self._heard(fields)
            if not client.over:
                client.phase, client.reason = FAILED, str(fields.get("error", ""))[:1000]
        return {}

    def done(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A client hands in what it measured. One that was thought to be lost stays so, and what it brings counts."""
        measures = Measures.from_json(fields["measures"])
        before, after = Footprint.from_json(fields["before"]), Footprint.from_json(fields["after"])
        with self._lock:
            client = self._heard(fields)
            client.measures, client.before, client.after = measures, before, after
            client.seconds, client.cpu_s = float(fields["seconds"]), float(fields["cpu_s"])
            client.manifests = tuple(str(one) for one in fields["manifests"])
            if not client.over:
                client.phase = DONE
        return {}

    # -- what whoever runs the test asks ------------------------------------------------------------------------

    def clients(self) -> list[ClientState]:
        """All that have come."""
        with self._lock:
            return list(self._clients.values())

    def count(self, *phases: str) -> int:
        """How many are in one of these phases."""
        return sum(client.phase in phases for client in self.clients())

    def go(self) -> None:
        """Let all that are ready begin, and nobody join any more."""
        with self._lock:
            self.went = self._clock()

    def stop(self) -> None:
        """Have all end early; each is told when it is heard of next."""
        with self._lock:
            self._stop = True

    def look_for_lost(self) -> None:
        """Give up clients of which nothing was heard for too long."""
        with self._lock:
            for client in self._clients.values():
                silent = self._clock() - client.heard
                if not client.over and silent > self._lost_s:
                    client.phase, client.reason = LOST, f"nothing was heard of it for {silent:.0f} s"

    def lose(self, pid: int, host: str, reason: str) -> None:
        """Give up a client whose process is known to have ended."""
        with self._lock:
            for client in self._clients.values():
                if (client.pid, client.host) == (pid, host) and not client.over:
                    client.phase, client.reason = LOST, reason

    def give_up(self, reason: str) -> None:
        """Give up all that are not over."""
        with self._lock:
            for client in self._clients.values():
                if not client.over:
                    client.phase, client.reason = LOST, reason

    def _heard(self, fields: dict[str, Any]) -> ClientState:
        client = self._clients.get(int(fields["client"]))
        if client is None:
            raise InvalidError(fields["client"], "is no client of this load test")
        client.heard = self._clock()
        return client
