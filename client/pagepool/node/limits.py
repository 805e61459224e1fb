"""Limits of processes (setrlimit) that a node does without."""

from __future__ import annotations

import resource
from typing import Final

from pagepool.errors import UnsupportedError

_MOST_OPEN: Final = 8192
_LEAST_OPEN: Final = 64
"""An idle worker has some twenty for itself, as `/proc/PID/fd` shows; requests and objects take one each."""
_LIMITS: Final = (
    resource.RLIMIT_AS,
    resource.RLIMIT_CPU,
    resource.RLIMIT_DATA,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NPROC,
)


def leave_limits() -> None:
    """Limits of who needed the node first are not meant for it: it would fail all containers that come later.

    A shell's limit of open files is small for hundreds of mounts, too.

    Raises:
        UnsupportedError: too few files may be open for anything; the node could not even be ended.
    """
    for limit in _LIMITS:
        _raise(limit, resource.RLIM_INFINITY)
    _raise(resource.RLIMIT_NOFILE, _MOST_OPEN)
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if not _is_at_least(allowed, _LEAST_OPEN):
        raise UnsupportedError(f"a node needs {_LEAST_OPEN} open files, and may have {allowed} (ulimit -n)")


def _raise(limit: int, wanted: int) -> None:
    soft, hard = resource.getrlimit(limit)
    if _is_at_least(soft, wanted):
        return
    try:
        resource.setrlimit(limit, (wanted, hard if _is_at_least(hard, wanted) else wanted))
    except (OSError, ValueError):  # without CAP_SYS_RESOURCE what is allowed has to do
        resource.setrlimit(limit, (hard, hard))


def _is_at_least(one: int, other: int) -> bool:
    return one == resource.RLIM_INFINITY or (other != resource.RLIM_INFINITY and one >= other)
