"""Supervisor and worker keep each other alive, whoever is killed."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from pagepool.errors import BusyError, UnsupportedError
from pagepool.node import handover
from pagepool.node.guard import Guard
from pagepool.node.handover import SUPERVISOR, WORKER, Post, delay_s
from pagepool.node.supervisor import start_node
from tests.node.guarded import TIMEOUT_S, Pair, pair, wait_post


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, as sockets need it."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def _wait_gone(process: int) -> None:
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], TIMEOUT_S)[0]
    finally:
        os.close(descriptor)


def test_each_replaces_the_other(place: Path) -> None:
    """In turn, many times, and the descriptors live on; in the end there is one of each."""
    ours, theirs = os.pipe()
    with pair(place, descriptors={"pipe": theirs}) as both:
        os.close(theirs)
        worker = both.wait_ready()
        for _ in range(5):
            supervisor = both.supervisor()
            assert supervisor is not None
            both.kill(supervisor)
            supervisor = wait_post(both.run, SUPERVISOR, supervisor)
            assert both.worker() == worker
            both.kill(worker)
            worker = both.wait_ready()
            assert both.supervisor() == supervisor
            assert not select.select([ours], [], [], 0)[0]  # it would be at its end
    assert os.read(ours, 1) == b""
    os.close(ours)


def test_a_worker_that_may_open_nothing_for_a_while(place: Path) -> None:
    """When its supervisor dies just then it starts another one later, and not never."""
    with pair(place) as both:
        worker, supervisor = both.wait_ready(), both.supervisor()
        assert supervisor is not None
        limits = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (0, limits[1]))
        both.kill(supervisor)
        while "the supervisor cannot be started" not in both.log():
            os.sched_yield()
        resource.prlimit(worker, resource.RLIMIT_NOFILE, limits)
        _wait_only(both, place, worker)


def test_nobody_is_left_over(place: Path) -> None:
    """Whenever a supervisor is killed, on its way to its post too, there is one in the end, and one worker."""
    with pair(place) as both:
        worker = both.wait_ready()
        for _ in range(6):
            for process in _processes(place) - {worker}:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        supervisor = _wait_only(both, place, worker)
        os.kill(supervisor, signal.SIGHUP)
        worker = both.wait_ready()
        assert _wait_only(both, place, worker) == supervisor
    assert _processes(place) == set()


def _wait_only(both: Pair, place: Path, worker: int) -> int:
    """Wait until there is nobody but a supervisor and a worker. Returns the number of the supervisor.

    Who was killed has its post, and no memory, until the kernel has closed its files.
    """
    deadline_s = time.monotonic() + TIMEOUT_S
    while both.supervisor() is None or _processes(place) != {both.supervisor(), worker}:
        assert time.monotonic() < deadline_s, (_processes(place), both.supervisor(), worker, both.log())
        os.sched_yield()
    supervisor = both.supervisor()
    assert supervisor is not None
    return supervisor


def _processes(place: Path) -> set[int]:
    """Everything that has this node's handover, but what has died and waits for its parent."""
    found = set()
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdecimal() and os.fsencode(place) in (process / "environ").read_bytes():
                found.add(int(process.name))
    return found


def test_a_worker_that_hangs(place: Path) -> None:
    """It is killed and replaced."""
    with pair(place, hung_s=0.5) as both:
        worker = both.wait_ready()
        os.kill(worker, signal.SIGSTOP)
        assert both.wait_ready() != worker
        assert "no sign of life" in both.log()


def test_a_supervisor_that_hangs(place: Path) -> None:
    """It is killed and replaced, whether it is old or has just executed itself anew."""
    with pair(place, hung_s=0.5) as both:
        both.wait_ready()
        supervisor = both.supervisor()
        assert supervisor is not None
        os.kill(supervisor, signal.SIGHUP)
        worker = both.wait_ready()
        os.kill(supervisor, signal.SIGSTOP)
        assert wait_post(both.run, SUPERVISOR, supervisor) != supervisor
        assert "the supervisor has shown no sign of life" in both.log()
        assert both.worker() == worker
        both.kill(worker)
        assert both.wait_ready() != worker


def test_a_worker_that_starts_slowly(place: Path) -> None:
    """It may take longer than it may show no sign of life: its threads run."""
    with pair(place, mode="slow", hung_s=0.5) as both:
        seen: set[bytes] = set()
        while len(seen) < 40:  # signs of life, 16 of them in that time
            with suppress(FileNotFoundError):
                seen.add((both.run / "beat").read_bytes())
            os.sched_yield()
        worker = both.worker()
        (place / "well").touch()
        assert both.wait_ready() == worker


def test_a_worker_that_is_not_well(place: Path) -> None:
    """It says so itself, by saying nothing."""
    with pair(place, hung_s=0.5) as both:
        worker = both.wait_ready()
        (place / "unwell").touch()
        _wait_gone(worker)
        (place / "unwell").unlink()
        assert both.wait_ready() != worker


def test_upgrade(place: Path) -> None:
    """SIGHUP: the supervisor is another program, and the worker another process."""
    with pair(place) as both:
        worker, supervisor = both.wait_ready(), both.supervisor()
        assert supervisor is not None
        for _ in range(2):
            os.kill(supervisor, signal.SIGHUP)
            following = both.wait_ready()
            assert following != worker
            _wait_gone(worker)
            worker = following
            assert (both.supervisor(), both.worker()) == (supervisor, worker)
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        assert children == [str(worker)]
        both.kill(supervisor)
        wait_post(both.run, SUPERVISOR, supervisor)
        assert both.worker() == worker


def test_signals_while_it_is_loaded(place: Path) -> None:
    """It has its post by then, and dies of none: what came last is done."""
    with pair(place) as both:
        both.wait_ready()
        supervisor = both.supervisor()
        assert supervisor is not None
        for _ in range(100):
            os.kill(supervisor, signal.SIGHUP)
            time.sleep(0.005)
        assert both.supervisor() == supervisor
        os.kill(supervisor, signal.SIGHUP)
        os.kill(supervisor, signal.SIGTERM)
        _wait_gone(supervisor)
        assert "there is no supervisor" not in both.log()
        assert "the node has ended" in both.log()
    assert _processes(place) == set()


@pytest.mark.parametrize("by_worker", [True, False])
def test_the_end(place: Path, by_worker: bool) -> None:
    """Whoever is told to end the node, both end, and nobody is started again."""
    with ExitStack() as stack:
        both = stack.enter_context(pair(place, mode="stopping" if by_worker else "idle"))
        both.wait_ready()
        supervisor = both.supervisor()
        if not by_worker:
            assert supervisor is not None
            os.kill(supervisor, signal.SIGTERM)
        os.close(Post(both.run, SUPERVISOR).wait())
        os.close(Post(both.run, WORKER).wait())
        assert (both.supervisor(), both.worker()) == (None, None)
        assert "the node has ended" in both.log()


def test_a_worker_that_just_ends(place: Path) -> None:
    """It is replaced: only a node that was told to end does."""
    with pair(place) as both:
        worker = both.wait_ready()
        both.kill(worker, signal.SIGTERM)
        assert both.wait_ready() != worker


def test_a_worker_that_cannot_begin(place: Path) -> None:
    """It is tried again, less and less often, and the log says so."""
    with pair(place, mode="crash") as both:
        while "3 times in a row" not in both.log():
            os.sched_yield()
        assert "has ended with 3 before it was ready" in both.log()
        (place / "well").touch()
        both.wait_ready()
    assert [delay_s(failures) for failures in (0, 1, 2, 3, 100)] == [0.0, 0.1, 0.2, 0.4, 30.0]


def test_one_node_only(place: Path) -> None:
    """Another one is refused while it runs."""
    with pair(place) as both:
        both.wait_ready()
        with pytest.raises(BusyError, match="is running"):
            start_node(["false"], {}, both.run)


def test_started_by_hand() -> None:
    """A guard without a supervisor says what is wrong."""
    with pytest.raises(UnsupportedError, match="not by hand"):
        Guard()


def test_whoever_is_given_a_post_is_the_last_to_sign(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A post of which nobody knew the holder could not be told to end: however late the one who starts goes on."""
    child = "import os, sys, time; os.pwrite(int(sys.argv[1]), b'%20d\\n' % os.getpid(), 0); print(); time.sleep(60)"
    lock = Post(place, SUPERVISOR).take()
    assert lock is not None
    started = subprocess.Popen

    def late(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        """Come back only once the child has signed."""
        process = started(*arguments, **{**options, "stdout": subprocess.PIPE})
        assert process.stdout is not None
        with process.stdout as said:
            said.readline()
        return process

    monkeypatch.setattr(subprocess, "Popen", late)
    command = [sys.executable, "-c", child, str(lock)]
    process = handover.Handover(str(place), command, {}).start(command, lock, detaches=True)
    try:
        assert Post(place, SUPERVISOR).holder() == process.pid
    finally:
        process.kill()
        process.wait()


def test_whether_a_worker_serves_is_what_the_one_at_the_post_says(place: Path) -> None:
    """Not what one before it has left, nor half of a line. Asking keeps nothing open."""
    post = Post(place, WORKER)
    assert not handover.is_ready(place)
    lock = post.take()
    assert lock is not None
    os.pwrite(lock, b"%20d\n" % os.getpid(), 0)
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - as are the names
    said = {
        b"%d 1 ready   " % os.getpid(): True,
        b"%d 1 starting" % os.getpid(): False,
        b"%d 1 ready   " % os.getppid(): False,
        b"%d 1" % os.getpid(): False,
        b"": False,
    }
    for beat, expected in said.items():
        (place / "beat").write_bytes(beat)
        assert handover.is_ready(place) is expected, beat
    post.send(signal.SIGCONT)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
    os.close(lock)
    (place / "beat").write_bytes(next(iter(said)))
    assert not handover.is_ready(place)


def test_a_log_that_has_become_large_is_begun_anew(place: Path) -> None:
    """Whoever writes to it goes on, and what was said last is kept."""
    log = place / "log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"first\n")
        handover.shorten_log(log)
        assert log.read_bytes() == b"first\n"
        os.truncate(log, handover.MOST_LOG)
        writer.write(b"last\n")
        handover.shorten_log(log)
        writer.write(b"next\n")
    assert log.read_bytes() == b"next\n"
    kept = log.with_name("log.1").read_bytes()
    assert kept.endswith(b"last\n")
    assert len(kept) < handover.MOST_LOG // 8
