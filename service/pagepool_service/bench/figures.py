"""A figure of a measurement, and what it is compared with in the same run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, and what it is compared with.

    Args:
        name: with its unit.
        value: measured.
        other: of the counterpart; None if there is none.
        against: what the counterpart is.
        aim: what the ratio (or, without a counterpart, the value) should be.
        at_least: whether at least that, or at most.
    """

    name: str
    value: float
    other: float | None = None
    against: str = ""
    aim: float | None = None
    at_least: bool = True

    @property
    def ratio(self) -> float | None:
        """The value to its counterpart's."""
        return self.value / self.other if self.other else None

    @property
    def met(self) -> bool | None:
        """Whether the aim was reached; None if there is none."""
        judged = self.value if self.other is None else self.ratio
        if self.aim is None or judged is None:
            return None
        return judged >= self.aim if self.at_least else judged <= self.aim

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "ratio": self.ratio, "met": self.met}
