"""A load test from its beginning to its end: waiting for clients, letting them work, gathering what they measured.

Every wait is bounded. Clients that do not come, end, or fall silent are counted, and the test goes on without them.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pagepool.errors import NotFoundError, PagepoolError
from pagepool.load.coordinator import DONE, FAILED, LOST, READY, WORKING
from pagepool.load.result import LoadResult
from pagepool.load.versions import VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pagepool.library import Client
    from pagepool.load.coordinator import Coordinator
    from pagepool.load.local import LocalClients
    from pagepool.load.observing import ServiceWatch
    from pagepool.load.result import Surroundings
    from pagepool.oci import Reference

    Watcher = Callable[[str, float], object]
    """Told what is going on, in words, and how far it is, from 0 to 1."""

_LOOK_S: Final = 0.1
_SAMPLE_S: Final = 1.0
_GRACE_S: Final = 90.0
_STOP_S: Final = 20.0


class LoadRun:
    """One load test.

    Args:
        coordinator: of its clients, who reach it already.
        watch: looks at the service.
        stop: set by whoever wants the test to end early.
        join_s: how long to wait until all clients are ready.
        local: clients on this machine, if there are any.
        tell: told how far it is.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        watch: ServiceWatch,
        stop: threading.Event,
        *,
        join_s: float,
        local: LocalClients | None,
        tell: Watcher,
    ) -> None:
        self._coordinator, self._watch, self._stop = coordinator, watch, stop
        self._join_s, self._local, self._tell = join_s, local, tell

    def run(self, surroundings: Surroundings) -> LoadResult:
        """Run it. Blocks for about as long as the plan says, and at most for two minutes more."""
        coordinator = self._coordinator
        self._watch.begin()
        self._wait_ready()
        began = time.monotonic()
        coordinator.go()
        self._wait_done()
        seconds = max((one.seconds for one in coordinator.clients()), default=0.0) or time.monotonic() - began
        self._watch.end()
        surroundings = replace(surroundings, load_after=os.getloadavg()[0])
        return LoadResult(
            coordinator.plan,
            surroundings,
            coordinator.clients(),
            self._watch.view,
            seconds,
            interrupted=self._stop.is_set(),
        )

    def _wait_ready(self) -> None:
        """Wait until all clients are ready, or none can be any more, or the time is over."""
        wanted = self._coordinator.plan.clients
        deadline = time.monotonic() + self._join_s
        while not self._stop.is_set() and time.monotonic() < deadline:
            running = self._look()
            ready, gone = self._coordinator.count(READY), self._coordinator.count(FAILED, LOST)
            self._tell(f"waiting for clients: {ready} of {wanted} ready", ready / wanted)
            if ready >= (wanted - gone if self._local is None else running):
                return
            self._stop.wait(_LOOK_S)

    def _wait_done(self) -> None:
        plan = self._coordinator.plan
        began, sampled = time.monotonic(), 0.0
        deadline = began + plan.seconds + _GRACE_S
        while time.monotonic() < deadline:
            self._look()
            clients = self._coordinator.clients()
            if all(one.over for one in clients):
                break
            if self._stop.is_set():
                self._coordinator.stop()
                deadline = min(deadline, time.monotonic() + _STOP_S)
            if time.monotonic() - sampled > _SAMPLE_S:
                sampled = time.monotonic()
                self._watch.sample()
            self._tell(self._words(), min(1.0, (time.monotonic() - began) / plan.seconds))
            time.sleep(_LOOK_S)
        self._coordinator.stop()
        self._coordinator.give_up("it had not handed in its figures when the time was over")

    def _look(self) -> int:
        """See who is lost; how many clients of this machine run."""
        running = self._local.tell(self._coordinator) if self._local else 0
        self._coordinator.look_for_lost()
        return running

    def _words(self) -> str:
        clients = self._coordinator.clients()
        count, errors, wrong = (
            sum(one.counts.get(name, 0) for one in clients) for name in ("count", "errors", "mismatches")
        )
        working = self._coordinator.count(WORKING, READY)
        lost = sum(one.over and one.phase != DONE for one in clients)
        words = f"{working} clients, {count:,} operations, {errors:,} errors"
        return words + (f", {wrong:,} WRONG" if wrong else "") + (f", {lost} lost" if lost else "")


def remove_versions(client: Client, result: LoadResult) -> list[str]:
    """Delete the versions that clients have pushed, and their tags. Returns what could not be, in words.

    A client that was lost has not said what it pushed: its tag is removed, and the version that it is on.
    """
    left, reason = 0, ""
    for one in result.clients:
        if one.phase == DONE and not one.manifests:
            continue
        tag = f"{result.plan.run}-{one.number}"
        manifests = list(one.manifests)
        with suppress(PagepoolError):
            newest = client.registry.head_manifest(VERSIONS, tag)
            if newest is not None and str(newest.digest) not in manifests:
                manifests.append(str(newest.digest))
        for target in dict.fromkeys((tag, *manifests)):
            try:
                client.registry.delete_manifest(VERSIONS, target)
            except NotFoundError:
                continue
            except PagepoolError as error:
                left, reason = left + 1, str(error)
    return [f"{left} tags and versions in {VERSIONS} were not removed: {reason}"] if left else []


def remove_tags(client: Client, references: Sequence[Reference]) -> None:
    """Delete images that were made for the test, with their tags. What cannot be is left."""
    for reference in references:
        with suppress(PagepoolError):
            found = client.registry.head_manifest(reference.repository, reference.target)
            client.registry.delete_manifest(reference.repository, reference.target)
            if found is not None:
                client.registry.delete_manifest(reference.repository, str(found.digest))
