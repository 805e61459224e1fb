"""When a request is tried again, and after how long. Pure decisions; `http` acts on them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
"""Answers that may be different next time."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of trying again.

    Args:
        attempts: how often one thing is tried in all. Progress in a download or upload starts the count
            again.
        base_s: the wait after the first failure; each further one is twice as long, and made random by half.
        limit_s: the longest wait, also where the server asks for more.
        sleep: waits; tests replace it.
        jitter: random number in [0, 1).
    """

    attempts: int = 5
    base_s: float = 0.25
    limit_s: float = 10.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    jitter: Callable[[], float] = field(default=random.random, repr=False)

    def delay_s(self, failures: int, retry_after: str | None = None) -> float:
        """How long to wait after so many failures in a row.

        Args:
            failures: at least 1.
            retry_after: the server's ``Retry-After`` header, if it sent one.
        """
        own = self.base_s * 2.0 ** min(failures - 1, 20) * (0.5 + self.jitter())
        asked = parse_retry_after(retry_after)
        return float(min(max(own, asked), self.limit_s))


def parse_retry_after(value: str | None) -> float:
    """Seconds that a ``Retry-After`` header asks for, 0 if it cannot be understood (RFC 9110, section 10.2.3)."""
    if not value:
        return 0.0
    if value.strip().isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
