"""One client of a load test: joins a coordinator, waits until all are there, works, and hands in what it measured.

While it lives it tells the coordinator so each second, from a thread of its own, and hears what others have published
and whether to stop. A coordinator that does not answer for a while has gone: then the client stops, too.
"""

from __future__ import annotations

import hashlib
import os
import platform
import threading
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from pagepool.errors import PagepoolError, UnreachableError, UnsupportedError
from pagepool.library import Client
from pagepool.load.access import open_access
from pagepool.load.access.opening import can_write
from pagepool.load.footprint import Footprint, cpu_time, measure_footprint
from pagepool.load.measures import Measures
from pagepool.load.operations import Operations
from pagepool.load.plan import PROTOCOL, LoadPlan, PlannedImage
from pagepool.load.recording import Target
from pagepool.load.truth import Truth
from pagepool.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.load.access import Access
    from pagepool.load.link import CoordinatorLink
    from pagepool.node.client import NodeClient
    from pagepool.transport import Credentials

_BEAT_S: Final = 1.0
_LOOK_S: Final = 0.2
_ALONE_S: Final = 20.0
_PAUSE_S: Final = 0.05
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How a client of this machine works.

    Args:
        work: an empty directory of its own.
        pool: where what is fetched is kept; clients of one machine share it.
        service: address of the service, if it is another from here than for the coordinator.
        credentials: tells who we are to the service at an address.
        verify: whether, and by whom, the certificate at an address is vouched for.
        wait_s: how long to wait for the coordinator.
        node: for mode kernel.
    """

    work: Path
    pool: Path
    service: str | None
    credentials: Callable[[str], Credentials]
    verify: Callable[[str], bool | str]
    wait_s: float
    node: NodeClient


class LoadClient:
    """A client.

    Args:
        link: to the coordinator.
        options: how it works here.
        stop: set by anybody who wants it to end early; what was measured is handed in all the same.
    """

    def __init__(self, link: CoordinatorLink, options: ClientOptions, stop: threading.Event) -> None:
        self._link, self._options, self._stop = link, options, stop
        self._measures = Measures()
        self._operations: Operations | None = None
        self._number = 0
        self._ended = threading.Event()

    def run(self) -> Measures:
        """Take part in a test, from joining to handing in.

        Returns:
            what was measured.

        Raises:
            PagepoolError, OSError: it could not begin, or the coordinator is gone.
        """
        answer = self._link.join(
            {"protocol": PROTOCOL, "version": __version__, "host": platform.node(), "pid": os.getpid()},
            self._options.wait_s,
        )
        self._number = int(answer["client"])
        plan = LoadPlan.from_json(answer["plan"])
        beating = threading.Thread(target=self._beat, daemon=True)
        beating.start()
        try:
            result = self._work(plan)
        except BaseException as error:
            with suppress(PagepoolError):
                self._link.post("/v1/failed", {"client": self._number, "error": f"{type(error).__name__}: {error}"})
            raise
        finally:
            self._ended.set()
            beating.join()
        self._hand_in(result)
        return self._measures

    def _work(self, plan: LoadPlan) -> dict[str, Any]:
        if plan.mix.write and not can_write(plan.mode):
            raise UnsupportedError(f"in mode {plan.mode} this user writes nothing: the mix has to leave write out")
        before = measure_footprint()
        with ExitStack() as stack:
            targets = [Target(one, stack.enter_context(closing(self._open_truth(one)))) for one in plan.images]
            url = self._options.service or plan.url
            client = Client(
                url,
                directory=self._options.pool,
                credentials=self._options.credentials(url),
                verify=self._options.verify(url),
            )
            access = open_access(plan.mode, client, self._options.work, self._options.node)
            stack.callback(access.close)
            operations = Operations(plan, self._number, access, client.registry, targets, self._measures)
            stack.callback(operations.close)
            operations.begin()
            self._operations = operations
            if not self._wait_for_go():
                return self._result(before, before, 0.0, 0.0)
            began, cpu = time.monotonic(), cpu_time(access.memory_pids())
            operations.start_clock()
            self._drive(plan, operations)
            seconds = time.monotonic() - began
            cpu = max(0.0, cpu_time(access.memory_pids()) - cpu)
            after = _measure(access)
            operations.finish()
        return self._result(before, after, seconds, cpu)

    def _drive(self, plan: LoadPlan, operations: Operations) -> None:
        """Do one thing after the other until the time is over."""
        weights = plan.mix.weights()
        names, sums = list(weights), list(accumulate(weights.values()))
        random = Random(f"{plan.seed}/{self._number}/mix")
        end = time.monotonic() + plan.seconds
        pause_ns = int(1e9 / plan.rate) if plan.rate else 0
        # A container that works was started before; with a rate, work is due from then on.
        name = "start" if "start" in weights else random.choices(names, cum_weights=sums)[0]
        due = 0
        while time.monotonic() < end and not self._stop.is_set():
            if pause_ns and due:
                due += pause_ns
                if (early := due - time.perf_counter_ns()) > 0 and self._stop.wait(early / 1e9):
                    break
                operations.scheduled_ns = due
            if not operations.run(name):
                self._stop.wait(_PAUSE_S)
            due = due or time.perf_counter_ns()
            name = random.choices(names, cum_weights=sums)[0]

    def _open_truth(self, planned: PlannedImage) -> Truth:
        """The coordinator's own file, if it is on this machine, else a copy."""
        path = Path(planned.truth_path)
        try:
            same = hashlib.sha256(path.read_bytes()).hexdigest() == planned.truth
        except OSError:
            same = False
        if not same:
            path = self._options.work / f"{planned.truth}.truth"
            self._link.fetch_truth(planned.truth, path)
        return Truth.open(path)

    def _wait_for_go(self) -> bool:
        """Wait until all clients are ready; False if there is nothing to do any more."""
        while not self._stop.is_set():
            answer = self._link.post("/v1/ready", {"client": self._number})
            if answer.get("go"):
                return True
            self._stop.wait(_LOOK_S)
        return False

    def _beat(self) -> None:
        """Tell the coordinator each second that we are there; stop if it wants that, or has gone."""
        heard = time.monotonic()
        while not self._ended.wait(_BEAT_S):
            operations, measures = self._operations, self._measures
            fields = {
                "client": self._number,
                "count": measures.count,
                "bytes": measures.bytes,
                "errors": measures.errors,
                "mismatches": measures.mismatches,
                "ready": 0 if operations is None else operations.ready,
            }
            try:
                answer = self._link.post("/v1/beat", fields)
            except PagepoolError:
                if time.monotonic() - heard > _ALONE_S:
                    self._stop.set()
                continue
            heard = time.monotonic()
            if operations is not None:
                operations.published = {int(key): int(value) for key, value in answer.get("published", {}).items()}
            if answer.get("stop"):
                self._stop.set()

    def _result(self, before: Footprint, after: Footprint, seconds: float, cpu: float) -> dict[str, Any]:
        return {
            "client": self._number,
            "measures": self._measures.to_json(),
            "before": before.to_json(),
            "after": after.to_json(),
            "seconds": seconds,
            "cpu_s": cpu,
            "manifests": [] if self._operations is None else self._operations.manifests,
        }

    def _hand_in(self, result: dict[str, Any]) -> None:
        for left in reversed(range(_ATTEMPTS)):
            try:
                self._link.post("/v1/done", result)
                return
            except UnreachableError:
                if not left:
                    raise
            time.sleep(_PAUSE_S)


def _measure(access: Access) -> Footprint:
    return measure_footprint(["self", *access.memory_pids()])
