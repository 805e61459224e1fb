"""A process that was stopped: in the middle of a write to the store, and elsewhere."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from pagepool_service.store.environment import Environment, Table
from pagepool_service.store.writerlock import WriterLock
from tests.service.pushes import push_image
from tests.service.test_supervisor import until
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WRITER = """
import os, signal, sys
from pathlib import Path
from pagepool_service.store.environment import Environment
with Environment.open(Path(sys.argv[1])) as env, env.write():
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@contextmanager
def stopped_writer(data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that was stopped while it writes; as a command is by Ctrl-Z."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, data / "store"]) as writer:
        try:
            assert os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WNOWAIT) is not None
            yield writer
        finally:
            writer.kill()


def reasons(service: Service) -> list[str]:
    """Why a service is not ready."""
    found: list[str] = httpx.get(f"{service.url}/readyz").json().get("reasons", [])
    return found


def held_s(service: Service) -> float:
    """What Prometheus is told."""
    listens = re.search(r"metrics on (\S+)", service.log())
    assert listens
    line = re.search(r"^pagepool_writer_held_seconds (\S+)", httpx.get(listens[1]).text, re.MULTILINE)
    assert line
    return float(line[1])


def test_who_holds_the_lock(tmp_path: Path) -> None:
    """Is seen from outside while he does, and two transactions are told apart."""
    lock = WriterLock.find(tmp_path / "store")
    assert lock is not None
    assert lock.holder() is None
    with stopped_writer(tmp_path) as writer:
        held = lock.holder()
        assert held is not None
        assert held.thread == writer.pid
        assert lock.holder() == held
    assert lock.holder() is None
    with Environment.open(tmp_path / "store") as env:
        versions = set()
        for key in (b"one", b"two"):
            with env.write() as txn:
                txn.put(Table.META, key, b"")
            with env.write():
                held = lock.holder()
                assert held is not None
                versions.add(held.version)
        assert len(versions) == 2


def test_a_writer_that_was_stopped(tmp_path: Path) -> None:
    """Whoever looks is told who it is, as long as it is so. Afterwards all goes on."""
    options = {"PAGEPOOL_STUCK_AFTER": "0.5s"}
    with running_service(tmp_path / "data", "--metrics-listen", "127.0.0.1:0", **options) as service:
        assert (reasons(service), held_s(service)) == ([], 0)
        with stopped_writer(service.data) as writer:
            until(lambda: bool(reasons(service)), "it is told")
            who = rf"the store takes no writes: process {writer.pid}, which is stopped, has kept the writer's lock"
            (reason,) = reasons(service)
            assert re.fullmatch(rf"{who} for \d+ s", reason)
            assert re.search(rf"ERROR pagepool.supervisor.* {who}", service.log())
            until(lambda: held_s(service) >= 1, "it is in the figures")
            writer.send_signal(signal.SIGCONT)
            until(lambda: not reasons(service), "it goes on")
        assert "the store takes writes again" in service.log()
        with httpx.Client(base_url=service.url) as http:
            push_image(http, "app", "1")


def test_a_process_of_the_service_that_was_stopped(tmp_path: Path) -> None:
    """Each goes on after a while: none is started anew."""
    with running_service(tmp_path / "data", PAGEPOOL_STUCK_AFTER="0.5s") as service:
        processes = service.children()
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        until(
            lambda: service.log().count("was stopped by a signal; it is told to go on") == len(processes), "it is told"
        )
        until(lambda: "T" not in service.children().values(), "they go on")
        assert service.children().keys() == processes.keys()
        with httpx.Client(base_url=service.url) as http:
            push_image(http, "app", "1")
