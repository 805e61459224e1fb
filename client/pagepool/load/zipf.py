"""Which page is read next: by Zipf's law, the page of rank r is read in proportion to 1 / r ** exponent.

Drawn by rejection and inversion (W. Hörmann, G. Derflinger, "Rejection-inversion to generate variates from monotone
discrete distributions", 1996): no table, so no memory, however many pages there are. Ranks are scattered over the
pages, the same way for all who give the same seed: what is hot for one client is hot for all.
"""

from __future__ import annotations

import math
from random import Random


class Zipf:
    """Draws ranks.

    Args:
        count: how many there are, at least 1.
        exponent: at least 0; 0 draws all alike.
        random: where chance comes from.
    """

    def __init__(self, count: int, exponent: float, random: Random) -> None:
        self._count, self._exponent = count, exponent
        self._random = random.random
        self._first = self._area(1.5) - 1.0
        self._last = self._area(count + 0.5)
        self._sure = 2.0 - self._inverse(self._area(2.5) - self._weight(2.0))

    def draw(self) -> int:
        """A rank from 0 (most often) to count - 1."""
        while True:
            area = self._last + self._random() * (self._first - self._last)
            place = self._inverse(area)
            rank = min(max(int(place + 0.5), 1), self._count)
            if rank - place <= self._sure or area >= self._area(rank + 0.5) - self._weight(rank):
                return rank - 1

    def _weight(self, x: float) -> float:
        return math.exp(-self._exponent * math.log(x))

    def _area(self, x: float) -> float:
        """The integral of the weight."""
        log = math.log(x)
        power = (1.0 - self._exponent) * log
        return log * (math.expm1(power) / power if abs(power) > 1e-8 else 1.0 + power / 2)

    def _inverse(self, area: float) -> float:
        power = area * (1.0 - self._exponent)
        if power <= -1.0:  # rounded: beyond either end
            return float(self._count) if area > 0 else 0.0
        if abs(power) > 1e-8:
            return math.exp(area * math.log1p(power) / power)
        return math.exp(area * (1.0 - power / 2))


class Scatter:
    """Puts ranks onto places, each onto another one, as the seed says.

    Args:
        count: how many there are, at least 1.
        seed: the same seed scatters alike.
    """

    def __init__(self, count: int, seed: int) -> None:
        random = Random(seed)
        self._count = count
        self._shift = random.randrange(count)
        self._step = random.randrange(count) | 1
        while math.gcd(self._step, count) != 1:
            self._step += 1

    def place(self, rank: int) -> int:
        """Where a rank is."""
        return (rank * self._step + self._shift) % self._count
