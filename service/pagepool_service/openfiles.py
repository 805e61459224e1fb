"""How many files the service's processes may have open."""

from __future__ import annotations

import resource
from typing import Final

from pagepool.errors import PagepoolError

LEAST: Final = 64
"""A worker has some thirty for itself (the store, the pool, its figures, what it inherits), as `/proc/PID/fd` shows;
each of the eight connections that it has at least takes one, and another while it reads or writes a file; the rest are
for objects."""
_MOST: Final = 65536


class StartError(PagepoolError):
    """A service that cannot be started, or go on, as this machine is."""


def raise_limit() -> None:
    """Have as many descriptors as may be had, for this process and its children: connections and cached objects take
    one each.

    Raises:
        StartError: there may be too few to serve anybody.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < LEAST:
        raise StartError(
            f"only {wanted} open files are allowed, and the service needs {LEAST}: raise the hard limit "
            "(ulimit -Hn, LimitNOFILE= of a unit, --ulimit nofile= of a container)"
        )
