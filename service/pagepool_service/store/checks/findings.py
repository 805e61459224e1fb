"""What a check finds, and how it says so: problems, notes, counts and progress, as values that go through a pipe.

A *problem* is damage: something that was stored cannot be had back as it was. A *note* is worth knowing and costs
nobody anything (space that collection will take back, a comparison that was not possible). Thread-safe.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pagepool.errors import PagepoolError

# Problems of one kind that are listed one by one; a table that is gone altogether is not a million lines.
LISTED = 1000
_PROGRESS_STEP = 4 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One damaged or contradictory record.

    Args:
        kind: of the record: ``frame``, ``extent``, ``object``, ``recipe``, ``layer``, ``blob``, ``manifest``,
            ``tag``, ``link`` ..., or ``database`` for the pages below the records.
        name: its digest, number or name.
        reason: what is wrong.
        images: the images that cannot be read whole because of it, as ``repository:tag``, or
            ``repository@digest`` for one without a tag.
    """

    kind: str
    name: str
    reason: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What to check.

    Args:
        data: the data directory.
        quick: records' checksums and structure only; no content is read.
        images: references of the images to check; none for everything.
        first: the stage to begin with, after an earlier process ended in the one before.
        problems: found by earlier processes of the same check.
    """

    data: Path
    quick: bool = False
    images: tuple[str, ...] = ()
    first: int = 0
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class CarriedError:
    """An error on its way through a pipe: classes whose constructors take values cannot be pickled themselves."""

    kind: type[PagepoolError]
    text: str
    values: dict[str, Any]

    @classmethod
    def of(cls, error: PagepoolError) -> CarriedError:
        """Pack it."""
        return cls(type(error), str(error), dict(vars(error)))

    def restore(self) -> PagepoolError:
        """Unpack it."""
        error = self.kind.__new__(self.kind)
        error.args = (self.text,)
        vars(error).update(self.values)
        return error


class Message(NamedTuple):
    """What a check says.

    Args:
        kind: which of these it is.
        name: of the step that begins (`stage`), what is counted (`count`), or the text (`note`).
        number: of the stage that begins (`begin`), the work in a step (`stage`) or done of it so far (`progress`),
            or how many (`count`).
        problem: what was found (`problem`), or the same again with its images (`images`).
        error: what ended the check before it began (`error`).
    """

    kind: Literal["begin", "stage", "progress", "count", "note", "problem", "images", "error", "end"]
    name: str = ""
    number: int = 0
    problem: Problem | None = None
    error: CarriedError | None = None


@dataclass(slots=True)
class Findings:
    """Gathers what the stages of one process find, and passes it on.

    Args:
        send: takes each message, from any thread.
        problems: those found already.
    """

    send: Callable[[Message], None]
    problems: list[Problem] = field(default_factory=list)
    _listed: Counter[str] = field(default_factory=Counter)
    _done: int = 0
    _told: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, number: int) -> None:
        """The stage of this number begins: where to go on if this process does not survive it."""
        with self._lock:
            self.send(Message("begin", number=number))

    def stage(self, name: str, work: int) -> None:
        """A stage begins, with so much to do."""
        with self._lock:
            self._done = self._told = 0
            self.send(Message("stage", name, work))

    def advance(self, work: int) -> None:
        """So much of it is done."""
        with self._lock:
            self._done += work
            if self._done - self._told >= _PROGRESS_STEP:
                self._told = self._done
                self.send(Message("progress", number=self._done))

    def problem(self, kind: str, name: str, reason: str) -> None:
        """Something is damaged. The same is told once."""
        found = Problem(kind, name, reason)
        with self._lock:
            if found in self.problems:
                return
            self._listed[kind] += 1
            if self._listed[kind] > LISTED:
                return
            if self._listed[kind] == LISTED:
                found = Problem(kind, name, f"{reason}; more of this kind are not listed")
            self.problems.append(found)
            self.send(Message("problem", problem=found))

    def note(self, text: str) -> None:
        """Something worth knowing."""
        with self._lock:
            self.send(Message("note", text))

    def count(self, what: str, number: int = 1) -> None:
        """So many more were checked."""
        with self._lock:
            self.send(Message("count", what, number))

    def names(self, kind: str) -> set[str]:
        """The names of the problems of a kind."""
        with self._lock:
            return {problem.name for problem in self.problems if problem.kind == kind}
