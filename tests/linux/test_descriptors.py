"""Descriptors of a program that has many."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator

import pytest

from pagepool.linux.descriptors import is_readable
from pagepool.mount.mounts import _wait_end

_HIGH = 1024  # select(2) knows none from this one on


@pytest.fixture
def high() -> Iterator[tuple[int, int]]:
    """A pipe whose ends have high numbers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= _HIGH + 8:
        pytest.skip("needs more descriptors than select(2) knows (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, _HIGH + 9), hard))
    low = os.pipe()
    found = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH) for descriptor in low]
    for descriptor in low:
        os.close(descriptor)
    yield found[0], found[1]
    for descriptor in found:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_can_be_read(high: tuple[int, int]) -> None:
    reading, writing = high
    assert not is_readable(reading, 0)
    assert not is_readable(reading, 0.01)
    os.write(writing, b"x")
    assert is_readable(reading, 0)
    assert is_readable(reading, None)


def test_the_end_of_a_process_is_seen(monkeypatch: pytest.MonkeyPatch, high: tuple[int, int]) -> None:
    """Also by a descriptor with a high number, as a program with many files open gets it."""
    monkeypatch.setattr(os, "pidfd_open", lambda _: os.dup2(high[0], _HIGH + 4))
    assert not _wait_end(1, 0.0)
    os.write(high[1], b"x")
    assert _wait_end(1, 0.0)
