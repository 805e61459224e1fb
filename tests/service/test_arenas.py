"""What a worker's threads have freed is there for the others, and so bounded."""

from __future__ import annotations

import ctypes
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.server import running_service

CLIENTS = 24
ARENA_SIZE = 64 << 20
"""glibc reserves so much for each arena but the first, at a multiple of it (malloc/arena.c: HEAP_MAX_SIZE)."""


def arenas(process: int | str) -> int:
    """How many a process has besides its first."""
    regions = []
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        place, rights, _, _, inode, *_ = line.split()
        begin, end = (int(part, 16) for part in place.split("-"))
        regions.append((begin, end, rights, inode))
    return sum(
        begin % ARENA_SIZE == 0
        and rights == "rw-p"
        and inode == "0"
        and following == (end, begin + ARENA_SIZE, "---p", "0")
        for (begin, end, rights, inode), following in itertools.pairwise(regions)
    )


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_the_threads_of_a_worker_share_their_memory(tmp_path: Path) -> None:
    with running_service(tmp_path / "data", "--workers", "1") as service:
        start = threading.Barrier(CLIENTS)

        def ask(_: int) -> None:
            with httpx.Client(base_url=service.url) as http:
                start.wait()
                for _ in range(5):
                    assert http.get("/v2/app/manifests/1").status_code == 404
                    assert http.get("/v2/_catalog").status_code == 200

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(ask, range(CLIENTS)))
        assert arenas(min(service.children())) == 0  # the worker was started first


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_arenas_are_seen() -> None:
    """Else the above could not fail: this process lets each thread have its own."""
    ready, done = threading.Barrier(9), threading.Event()

    def hold() -> None:
        kept = [bytes(1000) for _ in range(100)]
        ready.wait()
        done.wait()
        del kept

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    ready.wait()
    found = arenas("self")
    done.set()
    for thread in threads:
        thread.join()
    assert found > 0
