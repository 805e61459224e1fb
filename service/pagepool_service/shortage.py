"""Which process of the service the kernel ends when memory runs out: one that is started again.

The supervisor has more pages mapped than a process that has just been forked of it, since those count only the ones
they have touched. So it would be the kernel's first choice, and all others end with it. Whoever is not root cannot
make himself less of a choice, but everybody can make himself more of one: the supervisor's children do.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from pagepool_service.pools import memory_size

_SCORE: Final = Path("/proc/self/oom_score_adj")
_LEAD: Final = 64 << 20
"""Bytes that a process counts for beyond what it has: more than the supervisor has more than it."""
_WHOLE: Final = 1000  # the kernel's score of a process that has all of the memory
_MOST: Final = _WHOLE // 5
"""A small share is meant of what a control group may have, but is taken of the machine's memory when that runs out."""


def go_first() -> None:
    """Have the kernel end this process rather than the one that it was forked of. Children inherit it.

    Does nothing where there is no /proc.
    """
    lead = min(_MOST, -(-_WHOLE * _LEAD // memory_size()))
    with contextlib.suppress(OSError, ValueError):
        _SCORE.write_text(str(min(_WHOLE, int(_SCORE.read_text()) + lead)))
