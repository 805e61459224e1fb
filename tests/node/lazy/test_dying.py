"""The death of who serves the lazy mount, seen from above."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.node.stack import LARGE, Stack, lazy_stack, needs_stack, open_gate, worker

_Mounted = tuple[Stack, int]


def _cat(stack: Stack, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["cat", str(stack.at / name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _two(stack: Stack) -> dict[str, Path]:
    """A small file and a large one, with gates."""
    contents = {"small": b"small", "large": os.urandom(LARGE + 1)}
    return {name: stack.gate(stack.add(name, data)) for name, data in contents.items()}


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("deaths", [1, 3])
def test_killed_in_mid_request(mounted: _Mounted, name: str, deaths: int) -> None:
    """The one who waits gets the right bytes from the next server, however many died of it."""
    stack, descriptor = mounted
    gates = _two(stack)
    with ExitStack() as workers:
        process = workers.enter_context(worker(stack, descriptor))
        stack.mount()
        reader = _cat(stack, name)
        try:
            for _ in range(deaths - 1):
                gate = os.open(gates[name], os.O_WRONLY)  # when it can be opened, somebody waits at it
                process.kill()
                process.wait()
                os.close(gate)
                process = workers.enter_context(worker(stack, descriptor))
            with open_gate(gates[name]):
                process.kill()
                process.wait()
            workers.enter_context(worker(stack, descriptor))
            output, errors = reader.communicate(timeout=60)
            assert (output, errors, reader.returncode) == (stack.files[name], b"", 0)
        finally:
            reader.kill()
            reader.wait()


@pytest.mark.parametrize("name", ["small", "large"])
def test_kernels_that_hand_nothing_out_again(mounted: _Mounted, name: str) -> None:
    """Before Linux 6.9: what was under way fails, what comes afterwards does not, and nobody waits for ever."""
    stack, descriptor = mounted
    gates = _two(stack)
    with worker(stack, descriptor, resend=False) as first:
        stack.mount()
        reader = _cat(stack, name)
        try:
            with open_gate(gates[name]):
                first.kill()
                first.wait()
            with worker(stack, descriptor, resend=False):
                output, errors = reader.communicate(timeout=60)
                if name == "large":
                    # It was read ahead; the kernel tries again, one page at a time.
                    assert (output, errors) == (stack.files[name], b"")
                else:
                    assert (output, reader.returncode) == (b"", 1)
                    assert b"Input/output error" in errors
                assert _cat(stack, name).communicate(timeout=60)[0] == stack.files[name]
        finally:
            reader.kill()
            reader.wait()


def test_all_dead_at_once() -> None:
    """What was fetched, or is in the page cache, goes on; what was not is ENOTCONN, not "no such file"."""
    needs_stack()
    with tempfile.TemporaryDirectory() as directory, lazy_stack(Path(directory).resolve()) as (stack, descriptor):
        stack.fill(2, 2)
        with worker(stack, descriptor):
            stack.mount()
            for name in ("s0", "l0"):
                assert (stack.at / name).read_bytes() == stack.files[name]
        replaced = os.open(os.devnull, os.O_RDONLY)
        os.dup2(replaced, descriptor)
        os.close(replaced)
        for name in ("s0", "l0"):
            assert (stack.at / name).read_bytes() == stack.files[name]
        assert sorted(path.name for path in stack.at.iterdir()) == sorted(stack.files)
        for name in ("s1", "l1"):
            with pytest.raises(OSError, match="not connected") as caught:
                (stack.at / name).read_bytes()
            assert caught.value.errno == errno.ENOTCONN


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("early", [False, True])
def test_readers_killed_around_a_death(mounted: _Mounted, name: str, early: bool) -> None:
    """They are let go of by the next server, whether they were killed before it began or afterwards."""
    stack, descriptor = mounted
    gate = _two(stack)[name]
    with worker(stack, descriptor) as first:
        stack.mount()
        reader = _cat(stack, name)
        try:
            held = os.open(gate, os.O_WRONLY)
            first.kill()
            first.wait()
            os.close(held)
            if early:
                reader.terminate()
            with worker(stack, descriptor):
                if not early:
                    with open_gate(gate):
                        reader.terminate()
                        assert reader.wait(60) == -signal.SIGTERM
                assert reader.wait(60) == -signal.SIGTERM
        finally:
            reader.kill()
            reader.communicate()
