"""The power fails at random moments of concurrent pushes; what was acknowledged is on the disk, and right.

As `test_kill`, but what the kernel had not written yet is lost too: the file system is cut off from its disk
(`faults.cut_power`), and its image is mounted again. PAGEPOOL_POWER_ROUNDS (4 by default), PAGEPOOL_KILL_SEED.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool_service.store.fsck import check_store
from tests.fault.pushing import Acknowledged, Pusher, read_back, read_image
from tests.faults import cut_power, small_file_system
from tests.support.server import Service

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("PAGEPOOL_POWER_ROUNDS", "4"))
SEED = os.environ.get("PAGEPOOL_KILL_SEED", "1")
SIZE = 1 << 30  # of a sparse file: it takes what is written


@pytest.mark.timeout(120 + 30 * ROUNDS)
def test_what_was_acknowledged_survives_power_loss(tmp_path: Path) -> None:
    print(f"PAGEPOOL_KILL_SEED={SEED} PAGEPOOL_POWER_ROUNDS={ROUNDS}")
    randomness = random.Random(f"power {SEED}")
    noted = Acknowledged()
    image = None
    for number in range(ROUNDS):
        directory = tmp_path / f"round-{number}"
        directory.mkdir()
        with small_file_system(directory, SIZE, image=image) as mounted:
            if image is not None:
                image.unlink()
            image = directory / "small.img"
            data = tmp_path / "data"
            data.unlink(missing_ok=True)
            data.symlink_to(mounted)
            if number:
                report = check_store(data, quick=number % 2 == 0)
                assert report.problems == [], f"round {number}"
            _round(Service(data, ("--workers", "2")), mounted, noted, number, randomness)
    last = tmp_path / "last"
    last.mkdir()
    with small_file_system(last, SIZE, image=image) as mounted:
        service = Service(tmp_path / "data", ("--workers", "2"))
        (tmp_path / "data").unlink()
        (tmp_path / "data").symlink_to(mounted)
        service.start()
        try:
            _verify(service, noted)
        finally:
            service.stop()
        assert check_store(tmp_path / "data").problems == []
    print(f"{ROUNDS} rounds, {len(noted.blobs)} blobs and {len(noted.tags)} tags acknowledged")
    assert noted.answers > ROUNDS
    shutil.rmtree(tmp_path)


def _round(service: Service, mounted: Path, noted: Acknowledged, number: int, randomness: random.Random) -> None:
    """Verify, push from several threads, and cut the power some answers later."""
    service.start()
    try:
        _verify(service, noted)
        pushers = [
            Pusher(service.url, f"round-{number}/pusher-{index}", noted, f"{SEED} {number} {index}")
            for index in range(3)
        ]
        for pusher in pushers:
            pusher.start()
        assert noted.wait_for(randomness.randrange(1, 30)), service.log()
        # Some moment after an answer: not to wait for anything, but to hit a random place of what goes on.
        time.sleep(randomness.random() * 0.1)
        cut_power(mounted)
    finally:
        service.kill()
    for pusher in pushers:
        pusher.stop()
        pusher.join()


def _verify(service: Service, noted: Acknowledged) -> None:
    with httpx.Client(base_url=service.url, timeout=60) as http:
        for (repository, digest), size in noted.blobs.items():
            assert read_back(http, repository, digest) == size
        for (repository, tag), manifest in noted.tags.items():
            assert read_image(http, repository, tag) == manifest
        for repository, digest in noted.deleted:
            assert http.get(f"/v2/{repository}/blobs/{digest}").status_code == 404
