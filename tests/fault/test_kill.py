"""The whole service is killed at random moments of concurrent pushes; what was acknowledged is there, and right.

The number of rounds is PAGEPOOL_KILL_ROUNDS (5 by default; 100 and more before a release), PAGEPOOL_KILL_SEED
another run of random moments. A failure prints the seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool_service.store.fsck import check_store
from tests.fault.pushing import Acknowledged, Pusher, read_back, read_image
from tests.support.server import Service

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("PAGEPOOL_KILL_ROUNDS", "5"))
SEED = os.environ.get("PAGEPOOL_KILL_SEED", "1")
PUSHERS = 3
FULL_CHECK_EVERY = 10
READY_TIMEOUT_S = 120.0


@pytest.mark.timeout(60 + 20 * ROUNDS)
def test_what_was_acknowledged_survives_kill(tmp_path: Path) -> None:
    print(f"PAGEPOOL_KILL_SEED={SEED} PAGEPOOL_KILL_ROUNDS={ROUNDS}")
    randomness = random.Random(f"kill {SEED}")
    noted = Acknowledged()
    service = Service(tmp_path / "data", ("--workers", "2"))
    kills: list[int] = []
    try:
        for number in range(ROUNDS):
            service.start()
            _verify_some(service, noted, randomness)
            kills.append(_push_and_kill(service, noted, number, randomness))
            report = check_store(service.data, quick=number % FULL_CHECK_EVERY != FULL_CHECK_EVERY - 1)
            assert report.problems == [], f"round {number}"
        service.start()
        _verify_all(service, noted)
        _wait_ready(service, noted)
        _verify_all(service, noted)
        assert service.stop() == 0
    except BaseException:
        if service.process is not None:
            print(service.log())
        raise
    finally:
        with contextlib.suppress(AssertionError):
            service.kill()
    report = check_store(service.data)
    assert report.problems == []
    assert list((service.data / "spool").iterdir()) == []
    print(f"{ROUNDS} rounds, {len(noted.blobs)} blobs and {len(noted.tags)} tags acknowledged, {report.checked}")
    assert sum(kills) > 3 * ROUNDS, "hardly anything was pushed"


def _push_and_kill(service: Service, noted: Acknowledged, number: int, randomness: random.Random) -> int:
    """Push from several threads, and kill everything some answers later. Returns how many answers there were."""
    before = noted.answers
    pushers = [
        Pusher(service.url, f"round-{number}/pusher-{index}", noted, f"{SEED} {number} {index}")
        for index in range(PUSHERS)
    ]
    for pusher in pushers:
        pusher.start()
    assert noted.wait_for(randomness.randrange(1, 40)), service.log()
    # Some moment after an answer: not to wait for anything, but to hit a random place of what goes on.
    time.sleep(randomness.random() * 0.1)
    _kill_everything(service, randomness)
    for pusher in pushers:
        pusher.stop()
        pusher.join()
        assert pusher.refused == [], [answer.text for answer in pusher.refused]
    return noted.answers - before


def _kill_everything(service: Service, randomness: random.Random) -> None:
    """SIGKILL to the supervisor, the workers and the maintenance processes, in any order."""
    assert service.process is not None
    pids = [service.process.pid, *service.children()]
    randomness.shuffle(pids)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    service.kill()


def _verify_some(service: Service, noted: Acknowledged, randomness: random.Random) -> None:
    """The newest of what was acknowledged, and some of the rest; nothing that is visible is half there."""
    with httpx.Client(base_url=service.url, timeout=60) as http:
        tags = list(noted.tags.items())
        for (repository, tag), manifest in tags[-20:] + randomness.sample(tags, min(5, len(tags))):
            assert read_image(http, repository, tag) == manifest
        blobs = list(noted.blobs.items())
        for (repository, digest), size in blobs[-20:] + randomness.sample(blobs, min(10, len(blobs))):
            assert read_back(http, repository, digest) == size
        for repository, digest in list(noted.deleted)[-20:]:
            if (repository, digest) not in noted.blobs:
                assert http.get(f"/v2/{repository}/blobs/{digest}").status_code == 404


def _verify_all(service: Service, noted: Acknowledged) -> None:
    with httpx.Client(base_url=service.url, timeout=60) as http:
        for (repository, digest), size in noted.blobs.items():
            assert read_back(http, repository, digest) == size
        for (repository, tag), manifest in noted.tags.items():
            answer = http.get(f"/v2/{repository}/manifests/{tag}")
            assert (answer.status_code, answer.content) == (200, manifest)
        # Tags that nobody was told of may be there all the same; what they name is whole.
        images = http.get("/v1/images", params={"n": 1000}).json()["images"]
        for image in images:
            if (image["name"], image["tag"]) not in noted.tags:
                read_image(http, image["name"], image["tag"])


def _wait_ready(service: Service, noted: Acknowledged) -> None:
    """Every layer that was acknowledged becomes ready: the jobs have survived as well."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    with httpx.Client(base_url=service.url, timeout=60) as http:
        for repository, tag in noted.tags:
            while True:
                answer = http.get(f"/v1/{repository}/images/{tag}")
                if answer.status_code == 200:
                    break
                assert answer.status_code == 202, answer.text
                assert time.monotonic() < deadline, answer.text
                time.sleep(0.05)
            assert answer.json()["state"] == "ready", answer.text
        while http.get("/v1/stats").json()["total"]["stored"]["spool"]:
            assert time.monotonic() < deadline, "the spool is not settled"
            time.sleep(0.1)
