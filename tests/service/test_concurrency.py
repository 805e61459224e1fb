"""Many clients at once, on the same few things, over several workers: whatever is read is right, and nothing fails."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.digest import Digest
from tests.service.pushes import begin_upload, finishing, image_parts, push_image
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = 6
STEPS = 60
REPOSITORIES = ("busy/a", "busy/b")
# Small ones go straight into the database, larger ones through the spool and its settling.
BLOBS = [random.Random(size).randbytes(size) for size in (0, 100, 131_072, 131_073, 400_000, 1_500_000)]


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with several processes of each kind."""
    data = tmp_path_factory.mktemp("busy") / "data"
    with running_service(data, "--workers", "3", "--ingest-processes", "2") as service:
        yield service


def play(service: Service, seed: int) -> list[str]:
    """Push, read, mount and delete at random; returns what was wrong."""
    wrong: list[str] = []
    dice = random.Random(seed)
    with httpx.Client(base_url=service.url, timeout=60) as http:
        for _ in range(STEPS):
            data, name = dice.choice(BLOBS), dice.choice(REPOSITORIES)
            url = f"/v2/{name}/blobs/{Digest.of(data)}"
            action = dice.random()
            allowed: tuple[int, ...]
            if action < 0.4:
                answer = http.put(finishing(begin_upload(http, name), Digest.of(data)), content=data)
                allowed = (201,)
            elif action < 0.75:
                answer = http.get(url)
                allowed = (200, 404)
                if answer.status_code == 200 and answer.content != data:
                    wrong.append(f"seed {seed}: {url} is not what was pushed")
            elif action < 0.85:
                answer = http.post(f"/v2/{name}/blobs/uploads/", params={"mount": str(Digest.of(data))})
                allowed = (201, 202)
            else:
                answer = http.delete(url)
                allowed = (202, 404)
            if answer.status_code not in allowed:
                wrong.append(f"seed {seed}: {answer.request.method} {url}: {answer.status_code} {answer.text[:300]}")
    return wrong


def test_blobs_come_and_go(busy: Service) -> None:
    """Each answer is one that some order of the requests explains, and every byte is right."""
    seeds = [random.randrange(1 << 30) for _ in range(CLIENTS)]
    print("seeds", seeds)
    with ThreadPoolExecutor(CLIENTS) as pool:
        wrong = [line for found in pool.map(lambda seed: play(busy, seed), seeds) for line in found]
    assert not wrong, "\n".join(wrong)
    assert not busy.faults()


def test_tag_always_names_a_whole_image(busy: Service) -> None:
    """While it is moved to and fro between two images, and one of them is deleted and pushed again."""
    images = [{"file": bytes((number,)) * 1000} for number in range(2)]
    manifests = [image_parts(files)[0] for files in images]

    def push(number: int) -> list[str]:
        with httpx.Client(base_url=busy.url, timeout=60) as http:
            for step in range(15):
                push_image(http, "busy/tag", "latest", images[number])
                if number and step % 5 == 4:
                    http.delete(f"/v2/busy/tag/manifests/{Digest.of(manifests[number])}")
        return []

    def pull(_: int) -> list[str]:
        wrong = []
        with httpx.Client(base_url=busy.url, timeout=60) as http:
            for _ in range(60):
                answer = http.get("/v2/busy/tag/manifests/latest")
                if answer.status_code not in (200, 404):
                    wrong.append(f"{answer.status_code} {answer.text}")
                elif answer.status_code == 200 and answer.content not in manifests:
                    wrong.append(f"no manifest: {answer.text}")
        return wrong

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(push, 0), pool.submit(push, 1), pool.submit(pull, 0), pool.submit(pull, 1)]
        wrong = [line for run in runs for line in run.result()]
    assert not wrong, "\n".join(wrong)
    assert not busy.faults()
