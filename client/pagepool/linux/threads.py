"""That no more threads can be started: by the limits of a user (``ulimit -u``) or a control group (``pids.max``)."""

from __future__ import annotations

from typing import Final

WORDS: Final = "no more threads can be started: see ulimit -u, and pids.max of the control group"
"""What users are told."""


def is_want_of_threads(error: BaseException) -> bool:
    """Whether an error is that. Python says it in no other way."""
    return isinstance(error, RuntimeError) and str(error) == "can't start new thread"
