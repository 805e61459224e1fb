"""How fast services were reached of late: whether it pays to read files in parts that could be fetched whole.

A file that is read in parts is read through the node, and has pages of its own in memory, until it is let go of
(design, "Large objects"). That is worth it where the rest of the file takes long to come, and nowhere else. What tells
is how long a tree file took, which is fetched first of all.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

_TRIP_S: Final = 0.015
"""A round trip, and what a service that is busy takes beside it."""
_PER_SECOND: Final = 40e6
"""Bytes of a tree file, which comes compressed: about 10 MB a second on the link."""


class ReadInParts(StrEnum):
    """When files that are not large are read in parts while containers start."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Links:
    """What is known of links to services. Thread-safe; in memory.

    Args:
        choice: `ALWAYS` and `NEVER` hold for every service; `AUTO` for those over a slow link.
    """

    def __init__(self, choice: ReadInParts = ReadInParts.AUTO) -> None:
        self._choice = choice
        self._slow: dict[str, bool] = {}

    def note(self, where: str, size: int, seconds: float) -> None:
        """A tree file has come.

        Args:
            where: address of the service.
            size: plain bytes of the file.
            seconds: from asking for it until it was here.
        """
        self._slow[where] = seconds > _TRIP_S + size / _PER_SECOND

    def in_parts(self, where: str) -> bool:
        """Whether files from a service are to be read in parts. Not, if nothing has come from it yet."""
        if self._choice is ReadInParts.AUTO:
            return self._slow.get(where, False)
        return self._choice is ReadInParts.ALWAYS
