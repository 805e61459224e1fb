"""Waiting for what a service makes when it is asked for: an image's tree, and its EROFS image.

A service that knows ``Prefer: respond-async`` (RFC 7240) answers 202 while it makes it, with the seconds since it was
begun and a number of steps, and is asked again. An earlier one does not answer until it is made, or the request's time
is over.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.errors import PendingError
from pagepool.oci.fields import load_object
from pagepool.transport.service import answer_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.transport.http import Session

TREE_TIMEOUT_S: Final = 600.0
_STILL_S: Final = 60.0
"""So long there may be no step: longer than any one takes on a machine that is busy with others."""
_WAIT_S: Final = 1.0
_PAUSE_S: Final = 0.2


def _nobody(_seconds: int) -> None:
    """Is told."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for what is being made, and who is told.

    Args:
        limit_s: as long as steps are made.
        tell: called again and again with the seconds that it has taken so far. What it raises ends the waiting.
    """

    limit_s: float = TREE_TIMEOUT_S
    tell: Callable[[int], object] = _nobody


class Waiting:
    """The waiting for one thing. For one thread.

    Args:
        session: with the service.
        shown: what is waited for, for people.
        patience: how long.
        clock: seconds that only go forward.
    """

    def __init__(
        self, session: Session, shown: str, patience: Patience, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session, self._shown, self._patience, self._clock = session, shown, patience, clock
        self._begun = self._moved = clock()
        self._steps = -1

    @property
    def headers(self) -> dict[str, str]:
        """Of a request: that the service may say that it is not done."""
        # It has to answer well before the request is given up.
        wait_s = min(_WAIT_S, self._session.read_timeout_s / 2)
        return {"Prefer": f"respond-async, wait={int(wait_s)}"}

    def pause(self, body: bytes) -> None:
        """Wait a moment before it is asked for again.

        Args:
            body: of the answer 202.

        Raises:
            PendingError: it takes too long, or it does not go on.
            UnreachableError: the answer cannot be understood.
        """
        making = load_object(body, "answer", answer_error).object("making")
        now, steps, seconds = self._clock(), making.integer("steps"), making.integer("seconds")
        if steps != self._steps:
            self._steps, self._moved = steps, now
        self._patience.tell(seconds)
        if now - self._begun >= self._patience.limit_s or now - self._moved >= _STILL_S:
            raise PendingError(self._shown, (), making_s=seconds)
        self._session.retry.sleep(_PAUSE_S)
