"""Where the bytes of a pushed image are, in the order they get there; and what the service says of itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.support.server import Service

PULLED = ("pushed", "restarted")
"""Stages after which clients pull: before anything was read, and when all is where it stays."""

_TIMEOUT_S = 240.0


def stages(service: Service, pushed: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Go through the life of images: the body of the loop runs in each stage, and says so when it fails.

    Args:
        pushed: repository and tag of each.
    """
    yield "pushed"
    for repository, tag in pushed:
        await_ready(service, repository, tag)
    yield "ready"
    await_settled(service)
    yield "settled"
    assert service.stop() == 0, service.log()
    service.start()
    yield "restarted"


def await_ready(service: Service, repository: str, tag: str) -> None:
    """Wait until all layers of an image were read, and check that they can be mounted."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        answer = httpx.get(f"{service.url}/v1/{repository}/images/{tag}", timeout=60).raise_for_status()
        if answer.status_code == 200:
            body = answer.json()
            assert body["state"] == "ready", body
            return
        assert time.monotonic() < deadline, f"{repository}:{tag} is not ready:\n{answer.text}\n{service.log()}"
        time.sleep(0.05)


def await_settled(service: Service) -> dict[str, Any]:
    """Wait until no work is left: every blob is where it stays. Returns the totals."""
    deadline = time.monotonic() + _TIMEOUT_S
    while (total := totals(service))["jobs_waiting"]:
        assert time.monotonic() < deadline, f"{total['jobs_waiting']} jobs wait:\n{service.log()}"
        time.sleep(0.05)
    assert total["stored"]["spool"] == total["stored"]["uploads"] == 0
    return total


def totals(service: Service) -> dict[str, Any]:
    """What the store holds, in all."""
    answer: dict[str, Any] = httpx.get(f"{service.url}/v1/stats", timeout=60).raise_for_status().json()
    return dict(answer["total"])
