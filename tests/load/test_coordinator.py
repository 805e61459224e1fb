"""The coordinator, by its clock and by what is said to it: who is in which phase, and what is refused."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.errors import BusyError, InvalidError, ResponseError, UnreachableError
from pagepool.load.coordinator import DONE, FAILED, LOST, READY, WORKING, Coordinator
from pagepool.load.footprint import measure_footprint
from pagepool.load.link import CoordinatorLink
from pagepool.load.measures import Measures
from pagepool.load.mix import Mix
from pagepool.load.plan import PROTOCOL, LoadPlan, PlannedImage
from pagepool.load.server import serving
from pagepool.load.trace import Step
from pagepool.load.versions import Base

if TYPE_CHECKING:
    from pathlib import Path

JOIN = {"protocol": PROTOCOL, "host": "h", "pid": 5}


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def _plan(clients: int) -> LoadPlan:
    image = PlannedImage("app:1", "app@sha256:x", "00", "/nowhere", (Step(0, 1, 2),), "made up", 1, 2, 3, 0)
    base = Base("app", "{}", "{}", ("a\udcff",))
    return LoadPlan("http://127.0.0.1:1", (image,), base, "run", clients, 3.0, Mix(), 1.0, "library", 1, 0.0, 1.0)


def _result(client: int, **more: Any) -> dict[str, Any]:
    measures = Measures()
    measures.add("read", 10, 20, 0)
    taken = measure_footprint().to_json()
    return {
        "client": client,
        "measures": measures.to_json(),
        "before": taken,
        "after": taken,
        "seconds": 1.5,
        "cpu_s": 0.5,
        "manifests": ["sha256:a"],
        **more,
    }


def test_a_plan_survives_json() -> None:
    plan = _plan(3)
    assert LoadPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(ValueError, match="version 99"):
        LoadPlan.from_json(plan.to_json() | {"protocol": 99})


def test_from_joining_to_the_end() -> None:
    coordinator = Coordinator(_plan(2), 10.0, Clock())
    for number in (1, 2):
        answer = coordinator.join(JOIN)
        assert answer["client"] == number
        assert LoadPlan.from_json(answer["plan"]) == coordinator.plan
        assert coordinator.ready({"client": number}) == {"go": False}
    assert coordinator.count(READY) == 2
    coordinator.go()
    assert coordinator.ready({"client": 1}) == coordinator.ready({"client": 2}) == {"go": True}
    assert coordinator.beat({"client": 1, "ready": 4, "count": 7}) == {"stop": False, "published": {1: 4}}
    assert coordinator.beat({"client": 2}) == {"stop": False, "published": {1: 4}}
    assert coordinator.count(WORKING) == 2
    coordinator.done(_result(1))
    coordinator.failed({"client": 2, "error": "KeyError: bug"})
    first, second = coordinator.clients()
    assert (first.phase, first.seconds, first.manifests) == (DONE, 1.5, ("sha256:a",))
    assert first.measures is not None
    assert first.measures.count == 1
    assert (second.phase, second.reason) == (FAILED, "KeyError: bug")


def test_who_is_silent_is_lost_and_what_he_brings_later_counts() -> None:
    clock = Clock()
    coordinator = Coordinator(_plan(2), 10.0, clock)
    coordinator.join(JOIN)
    coordinator.join(JOIN)
    clock.now += 8
    coordinator.beat({"client": 2})
    clock.now += 3
    coordinator.look_for_lost()
    assert [one.phase == LOST for one in coordinator.clients()] == [True, False]
    assert "11 s" in coordinator.clients()[0].reason
    assert coordinator.beat({"client": 1})["stop"], "it is told not to go on"
    coordinator.done(_result(1))
    lost = coordinator.clients()[0]
    assert lost.phase == LOST
    assert lost.measures is not None


def test_a_process_that_ended_is_lost_unless_it_was_done() -> None:
    coordinator = Coordinator(_plan(2), 10.0, Clock())
    coordinator.join(JOIN)
    coordinator.join(JOIN | {"pid": 6})
    coordinator.done(_result(1))
    for pid in (5, 6, 7):
        coordinator.lose(pid, "h", "it ended with status 3")
    assert [one.phase for one in coordinator.clients()] == [DONE, LOST]
    assert coordinator.clients()[1].reason == "it ended with status 3"


def test_who_comes_too_late_or_speaks_otherwise_is_refused() -> None:
    coordinator = Coordinator(_plan(1), 10.0, Clock())
    with pytest.raises(InvalidError, match="version"):
        coordinator.join(JOIN | {"protocol": 0})
    coordinator.join(JOIN)
    with pytest.raises(BusyError, match="1 clients already"):
        coordinator.join(JOIN)
    other = Coordinator(_plan(1), 10.0, Clock())
    other.go()
    with pytest.raises(BusyError, match="too late"):
        other.join(JOIN)


@pytest.mark.parametrize("path", ["/v1/ready", "/v1/beat", "/v1/failed", "/v1/done", "/v1/join", "/v1/nothing"])
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"client": 9}', b'{"client": "x"}', b"\xff", b'{"client": 1}'])
def test_requests_that_make_no_sense_are_answered_with_an_error(path: str, body: bytes) -> None:
    coordinator = Coordinator(_plan(1), 10.0)
    coordinator.join(JOIN)
    with serving(coordinator, "127.0.0.1", 0, {}) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", path, body)
        answer = connection.getresponse()
        fields = json.loads(answer.read())
        connection.close()
        fine = body == b'{"client": 1}' and path in ("/v1/ready", "/v1/beat", "/v1/failed")
        assert answer.status == (404 if path == "/v1/nothing" else 200 if fine else 400)
        assert fine or fields["error"]
        assert coordinator.ready({"client": 1}) == {"go": False}, "it goes on"


def test_a_link_says_what_is_wrong(tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    truth.write_bytes(b"bytes")
    with serving(Coordinator(_plan(0), 10.0), "127.0.0.1", 0, {"abc": truth}) as port:
        link = CoordinatorLink(f"http://127.0.0.1:{port}")
        with pytest.raises(ResponseError, match="has its 0 clients already"):
            link.post("/v1/join", JOIN)
        with pytest.raises(ResponseError, match="404"):
            link.fetch_truth("def", tmp_path / "copy")
    with pytest.raises(UnreachableError, match="the coordinator at"):
        link.post("/v1/join", JOIN)
    with pytest.raises(UnreachableError), serving(Coordinator(_plan(0), 10.0), "192.0.2.1", 9, {}):
        pass


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:7000", "http://", "https://h:1", "http://h", "http://h:x", "http://h:99999"]
)
def test_a_bad_address_is_named(url: str) -> None:
    with pytest.raises(InvalidError, match="is no address of a coordinator"):
        CoordinatorLink(url)
