"""A whole node of supervisor and worker over a real overlay, killed again and again while others read.

`PAGEPOOL_DEATH_PAIRS` says how often each of the two.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pagepool.node.handover import SUPERVISOR
from tests.node.guarded import TIMEOUT_S, Pair, pair, wait_post
from tests.node.reading import SMALL
from tests.node.stack import LARGE, Stack, open_gate

_Mounted = tuple[Stack, int]
_PAIRS = int(os.environ.get("PAGEPOOL_DEATH_PAIRS", "20"))
_READERS = 4


def _add_batch(stack: Stack, batch: int, numbers: random.Random) -> None:
    files = {f"s{batch}-{number}": numbers.randbytes(numbers.randrange(1, 9000)) for number in range(SMALL)}
    files[f"x{batch}"] = b"#!/bin/sh\necho batch %d\n" % batch
    files[f"l{batch}"] = numbers.randbytes(LARGE + numbers.randrange(1, 500_000))
    for name, data in files.items():
        stack.add(name, data)
        (stack.root / "expected" / name).write_bytes(data)


def _release(stack: Stack, count: int) -> None:
    temporary = stack.root / "released.tmp"
    temporary.write_text(str(count))
    temporary.replace(stack.root / "released")


@contextmanager
def _readers(stack: Stack) -> Iterator[list[subprocess.Popen[str]]]:
    words = [sys.executable, "-m", "tests.node.reading", str(stack.root)]
    readers = [
        subprocess.Popen(
            [*words, str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for seed in range(_READERS)
    ]
    try:
        yield readers
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


def _kill_both_in_turn(both: Pair, worker: int) -> int:
    """The worker is killed, and when another one serves the supervisor is. Returns the worker that there is then."""
    both.kill(worker)
    worker = both.wait_ready()
    supervisor = both.supervisor()
    assert supervisor is not None
    both.kill(supervisor)
    wait_post(both.run, SUPERVISOR, supervisor)
    return worker


def test_killed_in_turn(mounted: _Mounted) -> None:
    """Dozens of deaths under load: no error, and every byte right."""
    stack, descriptor = mounted
    numbers = random.Random(7)
    (stack.root / "expected").mkdir()
    for batch in range(_PAIRS):
        _add_batch(stack, batch, numbers)
    with pair(stack.root, "serve", {"fuse": descriptor}) as both:
        worker = both.wait_ready()
        stack.mount()
        _release(stack, 1)
        with _readers(stack) as readers:
            for batch in range(1, _PAIRS + 1):
                _release(stack, batch)
                worker = _kill_both_in_turn(both, worker)
                assert [reader.poll() for reader in readers] == [None] * _READERS
            (stack.root / "enough").touch()
            said = [reader.communicate(timeout=TIMEOUT_S)[0] for reader in readers]
        assert [reader.returncode for reader in readers] == [0] * _READERS, said
        assert all(int(count) for count in said)
        assert both.log().count("another one is started") >= 2 * _PAIRS


def test_upgrade_in_mid_request(mounted: _Mounted) -> None:
    """Who waits for something meanwhile gets it from the new worker."""
    stack, descriptor = mounted
    gate = stack.gate(stack.add("small", b"small"))
    with pair(stack.root, "serve", {"fuse": descriptor}) as both:
        both.wait_ready()
        stack.mount()
        reader = subprocess.Popen(["cat", str(stack.at / "small")], stdout=subprocess.PIPE)
        try:
            with open_gate(gate):
                supervisor = both.supervisor()
                assert supervisor is not None
                os.kill(supervisor, signal.SIGHUP)
                both.wait_ready()
            assert reader.communicate(timeout=TIMEOUT_S)[0] == b"small"
        finally:
            reader.kill()
            reader.wait()


def test_upgrade_while_closing(mounted: _Mounted) -> None:
    """A worker that is told to end closes what it serves from. Who waits meanwhile must not be told of that."""
    stack, descriptor = mounted
    gate = stack.gate(stack.add("small", b"small"))
    os.mkfifo(stack.root / "closing")
    with pair(stack.root, "serve", {"fuse": descriptor}) as both:
        worker = both.wait_ready()
        stack.mount()
        reader = subprocess.Popen(["cat", str(stack.at / "small")], stdout=subprocess.PIPE)
        try:
            with open_gate(gate):
                os.kill(worker, signal.SIGTERM)
                (stack.root / "closing").read_bytes()
                (stack.root / "closing").unlink()
            assert both.wait_ready() != worker
            assert reader.communicate(timeout=TIMEOUT_S)[0] == b"small"
            assert "the source is closed" in both.log()
        finally:
            reader.kill()
            reader.wait()


def test_hung_in_mid_request(mounted: _Mounted) -> None:
    """Stopped, it is replaced, and who waits for something gets it."""
    stack, descriptor = mounted
    gate = stack.gate(stack.add("small", b"small"))
    with pair(stack.root, "serve", {"fuse": descriptor}, hung_s=1.0) as both:
        worker = both.wait_ready()
        stack.mount()
        reader = subprocess.Popen(["cat", str(stack.at / "small")], stdout=subprocess.PIPE)
        try:
            with open_gate(gate):
                os.kill(worker, signal.SIGSTOP)
                both.wait_ready()
            assert reader.communicate(timeout=TIMEOUT_S)[0] == b"small"
        finally:
            reader.kill()
            reader.wait()


def test_both_killed_at_once(mounted: _Mounted) -> None:
    """The only loss: what is not fetched is ENOTCONN; what is goes on."""
    stack, descriptor = mounted
    stack.fill(2, 2)
    with pair(stack.root, "serve", {"fuse": descriptor}) as both:
        worker = both.wait_ready()
        stack.mount()
        for name in ("s0", "l0"):
            assert (stack.at / name).read_bytes() == stack.files[name]
        replaced = os.open(os.devnull, os.O_RDONLY)
        os.dup2(replaced, descriptor)  # the test's own
        os.close(replaced)
        supervisor = both.supervisor()
        assert supervisor is not None
        os.kill(worker, signal.SIGSTOP)  # or one could be quicker than the second signal
        both.kill(supervisor)
        both.kill(worker)
        for name in ("s0", "l0"):
            assert (stack.at / name).read_bytes() == stack.files[name]
        for name in ("s1", "l1"):
            with pytest.raises(OSError, match="not connected") as caught:
                (stack.at / name).read_bytes()
            assert caught.value.errno == errno.ENOTCONN


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_dying_while_it_asks_itself(mounted: _Mounted, how: signal.Signals) -> None:
    """A worker waits for its own answer, as it may while it mounts an overlay. It dies all the same; another serves."""
    stack, descriptor = mounted
    gate = stack.gate(stack.add("waited for", b"waited for"))
    with pair(stack.root, "asks itself", {"fuse": descriptor}, hung_s=1.0) as both:
        worker = both.wait_ready()
        (stack.root / "well").touch()
        supervisor = both.supervisor()
        assert supervisor is not None
        os.kill(supervisor if how == signal.SIGHUP else worker, how)
        following = both.wait_ready()
        assert following != worker
        stack.mount()
        with subprocess.Popen(["cat", stack.at / "waited for"], stdout=subprocess.PIPE) as reader:
            with open_gate(gate):
                pass
            assert reader.communicate(timeout=TIMEOUT_S)[0] == b"waited for"
