"""What clients do how often: ``start=1,read=2000,write=100,push=0.02``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

from pagepool.errors import InvalidError


class MixInvalidError(InvalidError):
    """No mix."""

    what = "mix"


@dataclass(frozen=True, slots=True)
class Mix:
    """How often each thing is done, in proportion to the others.

    Args:
        start: starts of a container: an image is opened, or mounted, anew, and what its trace says is read.
        read: one page of an image that is open.
        write: a change in a private overlay, read back.
        push: a new version of an image.
    """

    start: float = 1.0
    read: float = 2000.0
    write: float = 100.0
    push: float = 0.02

    def weights(self) -> dict[str, float]:
        """By name, those that are done at all."""
        return {name: weight for name, weight in asdict(self).items() if weight}


NAMES = tuple(field.name for field in fields(Mix))


def parse_mix(text: str, default: Mix) -> Mix:
    """Parse a mix; what it does not name is not done.

    Args:
        text: ``NAME=WEIGHT,…``; "" for the default.
        default: that.

    Raises:
        MixInvalidError: it is none, with the reason.
    """
    if not text.strip():
        return default
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.partition("="))
        if name not in NAMES:
            raise MixInvalidError(text, f"there is no {name!r}; there are {', '.join(NAMES)}")
        if name in found:
            raise MixInvalidError(text, f"names {name} twice")
        try:
            found[name] = float(number) if equals else math.nan
        except ValueError:
            found[name] = math.nan
        if not 0 <= found[name] < math.inf:
            raise MixInvalidError(text, f"{name} needs a number that is not negative, as in {name}=10")
    if not any(found.values()):
        raise MixInvalidError(text, "nothing is done")
    return Mix(**{name: found.get(name, 0.0) for name in NAMES})
