"""The process that compresses stored frames again: it begins by itself, and may be killed."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

from pagepool_service.store.fsck import check_store
from tests.service.pushes import push_image
from tests.service.test_supervisor import until
from tests.store.helpers import text
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from pathlib import Path

FILES = {f"lib/{number}": text(120_000, number) for number in range(60)}


def totals(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{service.url}/v1/stats").json()["total"]
    return found


def is_ready(service: Service) -> bool:
    return httpx.get(f"{service.url}/v1/some/image/images/1").status_code == 200


def push(service: Service) -> None:
    with httpx.Client(base_url=service.url) as http:
        push_image(http, "some/image", "1", FILES)
    until(partial(is_ready, service), "the image is ready", 60)


def test_it_begins_when_nothing_else_is_to_be_done(tmp_path: Path) -> None:
    """And ends. The image is what it was."""
    data = tmp_path / "data"
    with running_service(data, PAGEPOOL_RECOMPRESS="yes") as service:
        push(service)
        until(lambda: totals(service)["frames_waiting"] == 0, "all frames were looked at", 60)
        compressed = totals(service)["stored"]["files"]
        assert "Traceback" not in service.log()
    with running_service(tmp_path / "other", PAGEPOOL_RECOMPRESS="no") as service:
        push(service)
        assert totals(service)["frames_waiting"] > 0
        assert compressed < 0.95 * totals(service)["stored"]["files"]
        assert len(service.children()) == 4
    assert not check_store(data).problems


def test_it_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    """With the whole service, in the middle: the store is whole, and it goes on after the restart."""
    service = Service(tmp_path / "data", environment={"PAGEPOOL_RECOMPRESS": "yes"})
    service.start()
    push(service)
    waiting = max(1, totals(service)["frames_waiting"])  # none, if this process came late to look
    until(lambda: totals(service)["frames_waiting"] < waiting, "some frames were looked at", 60)
    service.kill()
    assert not check_store(tmp_path / "data").problems
    service.start()
    try:
        until(lambda: totals(service)["frames_waiting"] == 0, "all frames were looked at", 60)
        children = set(service.children())
        os.kill(max(children), signal.SIGKILL)  # started last
        until(lambda: set(service.children()) > children - {max(children)}, "it is started again")
        assert is_ready(service)
    finally:
        service.stop()
    assert not check_store(tmp_path / "data").problems
