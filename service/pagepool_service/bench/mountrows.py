"""The figures of `bench mount`: pagepool's, its peer's, and what was aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pagepool_service.bench.servers import PAGEPOOL, PEER

if TYPE_CHECKING:
    from collections.abc import Mapping

MB: Final = 1e6


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Args:
        phase: which of the phases it is of.
        name: for people, with its unit.
        pagepool: measured; None if it was not.
        peer: the same of overlayfs.
        how: what is judged: "faster" (peer / pagepool), "ratio" (pagepool / peer), "value" (pagepool), "" for nothing.
        aim: of what is judged: at least, if faster, else at most; None if there is none.
    """

    phase: str
    name: str
    pagepool: float | None
    peer: float | None
    how: str = ""
    aim: float | None = None

    @property
    def judged(self) -> float | None:
        """What the aim is about; None if it was not measured."""
        if self.how == "value":
            return self.pagepool
        if not self.pagepool or not self.peer:
            return None
        return self.peer / self.pagepool if self.how == "faster" else self.pagepool / self.peer

    @property
    def met(self) -> bool | None:
        """Whether the aim was reached; None if there is none, or nothing was measured."""
        if self.aim is None or self.judged is None:
            return None
        return self.judged >= self.aim if self.how == "faster" else self.judged <= self.aim

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "phase": self.phase,
            "name": self.name,
            "pagepool": self.pagepool,
            "overlayfs": self.peer,
            "judged": self.how or None,
            "value": self.judged,
            "aim": self.aim,
            "met": self.met,
        }


def row(
    phase: str, name: str, figures: Mapping[str, float], how: str = "", aim: float | None = None, unit: float = 1
) -> Row:
    """A row out of the figures of each kind that was measured, divided by a unit."""
    ours, peer = (figures.get(kind) for kind in (PAGEPOOL, PEER))
    return Row(phase, name, None if ours is None else ours / unit, None if peer is None else peer / unit, how, aim)
