"""The id of the request that is being answered, for its answer and for every log line on the way.

A client's own `X-Request-Id` is taken over if it is a sane token, so that lines of a proxy and ours can be put
together; else one is made. It lives in a context variable: tasks inherit it, and
`routes.streaming.Threads` hands it to threads.
"""

from __future__ import annotations

import os
import re
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADER = b"x-request-id"
# No blanks, quotes or control characters: it is written into log lines and headers as it is.
_TOKEN = re.compile(rb"[A-Za-z0-9._:+/=@-]{1,128}")

current: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request under way; "" where there is none."""


def begin(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Choose the id of a request, and make it the current one.

    Args:
        headers: of the request, names in lower case.
    """
    given = next((value for name, value in headers if name == HEADER), b"")
    chosen = given.decode("ascii") if _TOKEN.fullmatch(given) else os.urandom(8).hex()
    current.set(chosen)
    return chosen
