"""The figures of `bench mount`: pagepool's, its peer's, and what was aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pagepool_service.bench.servers import PAGEPOOL, PEER
from pagepool_service.bench.stargz import STARGZ

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
        lazy: the same of stargz-snapshotter.
    """

    phase: str
    name: str
    pagepool: float | None
    peer: float | None
    how: str = ""
    aim: float | None = None
    lazy: float | None = None

    @property
    def judged(self) -> float | None:
        """What the aim is about; None if it was not measured."""
        return self.pagepool if self.how == "value" else self._compare(self.pagepool, self.peer)

    @property
    def lazy_judged(self) -> float | None:
        """What would be judged of stargz-snapshotter, beside overlayfs; None if it was not measured."""
        return self._compare(self.lazy, self.peer)

    @property
    def to_lazy(self) -> float | None:
        """What is judged, with stargz-snapshotter in the place of overlayfs; None if it was not measured."""
        return self._compare(self.pagepool, self.lazy)

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
            "stargz": self.lazy,
            "judged": self.how or None,
            "value": self.judged,
            "aim": self.aim,
            "met": self.met,
            "stargz_value": self.lazy_judged,
            "value_to_stargz": self.to_lazy,
        }

    def _compare(self, one: float | None, other: float | None) -> float | None:
        """How many times faster the first is, or its ratio to the other."""
        if self.how not in ("faster", "ratio") or not one or not other:
            return None
        return other / one if self.how == "faster" else one / other


def row(
    phase: str, name: str, figures: Mapping[str, float], how: str = "", aim: float | None = None, unit: float = 1
) -> Row:
    """A row out of the figures of each kind that was measured, divided by a unit."""
    ours, peer, lazy = (
        None if (figure := figures.get(kind)) is None else figure / unit for kind in (PAGEPOOL, PEER, STARGZ)
    )
    return Row(phase, name, ours, peer, how, aim, lazy)
