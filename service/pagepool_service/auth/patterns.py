"""Patterns of repository names: ``*`` stands for any characters of one part, ``**`` for any number of parts.

``team/*`` has ``team/app`` and not ``team/app/web``; ``team/**`` has both, and ``team`` itself; ``**`` has everything.
"""

from __future__ import annotations

import re
from typing import Final

_PLAIN = re.compile(r"[a-z0-9._*-]+(/[a-z0-9._*-]+)*")
LONGEST: Final = 255
"""Characters of a name. What is longer is no name, and would take long to compare."""

_MOST_STARS = 2


class Pattern:
    """One pattern. Immutable.

    Args:
        text: as it is written.

    Raises:
        ValueError: it is none; says why.
    """

    __slots__ = ("_everything", "_expression", "text")

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST or not _PLAIN.fullmatch(text):
            raise ValueError("has other characters than a-z, 0-9, '.', '_', '-', '/', '*', or an empty part")
        parts = text.split("/")
        if any("**" in part and part != "**" for part in parts):
            raise ValueError("'**' stands for whole parts, and has a part of its own, as in team/**")
        if parts.count("**") > _MOST_STARS or any(part.count("*") > _MOST_STARS for part in parts):
            raise ValueError(f"has more than {_MOST_STARS} times '**', or '*' in a part: it could take long to compare")
        self.text = text
        self._everything = set(parts) == {"**"}
        self._expression = re.compile("".join(map(_expression, parts)))

    def matches(self, name: str) -> bool:
        """Whether a name, of a repository that is there or not, is one of these."""
        return self._everything or (len(name) <= LONGEST and self._expression.fullmatch(f"{name}/") is not None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def _expression(part: str) -> str:
    """What a part means, the slash behind it included."""
    if part == "**":
        return "(?:[^/]+/)*"
    return "[^/]*".join(map(re.escape, part.split("*"))) + "/"
