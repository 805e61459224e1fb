"""The members of a layer, read out of its recipe.

The headers are in the literals, and the tar machine needs nothing else: file data is passed over by its size,
and what comes back beside each member is where that data is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pagepool.errors import CorruptError
from pagepool.image.layer import LayerSplitter
from pagepool.image.limits import UNLIMITED, Limits
from pagepool.image.member import Kind, Member
from pagepool.image.ops import LITERAL, Op


class _Collector:
    """Members that are complete or being read; the last one may still get references."""

    def __init__(self) -> None:
        self.found: list[tuple[Member, list[Op]]] = []

    def add(self, member: Member) -> None:
        self.found.append((member, []))

    def refer(self, op: Op) -> None:
        self.found[-1][1].append(op)

    def literal(self, data: memoryview, /) -> None:
        """Headers: the machine has read them."""

    def begin(self, member: Member, /) -> None:
        """`add` was called for it."""

    def data(self, view: memoryview, /) -> None:
        """File data that the writer chose to keep as literal."""
        self.refer(Op(LITERAL, view.tobytes(), 0, len(view)))

    def end(self) -> None:
        """Nothing to do."""


def iter_members(
    chunks: Iterable[Sequence[Op]], limits: Limits = UNLIMITED, *, strict: bool = True
) -> Iterator[tuple[Member, list[Op]]]:
    """Read the members of a layer.

    Args:
        chunks: the decoded chunks of the whole recipe, in order.
        limits: none, for a layer that was accepted. For any other those that it was split with.
        strict: whether a problem in the headers is an error, as it must be for a layer that was accepted. Otherwise
            it is passed over as in splitting: for recipes of layers that cannot be mounted.

    Returns:
        each good member in order, with the operations that stand for its file data: none for a file of no bytes and
        for every other kind; usually one `OBJECT`; for a sparse file its `SLICE` operations, all of one object.

    Raises:
        CorruptError: the file data is not where the headers say; in strict mode also a problem in the headers.
    """
    collector = _Collector()
    splitter = LayerSplitter(collector, limits, collector.add)
    for ops in chunks:
        for op in ops:
            if op.kind == LITERAL:
                # Everything found so far has its data behind it, but for a member that is being read.
                yield from _take(collector, 1 if splitter.in_member else 0)
                splitter.feed(op.data)
            else:
                _refer(collector, splitter, op)
        if strict:
            _check(splitter)
    splitter.close()
    if strict:
        _check(splitter)
    yield from collector.found


def _check(splitter: LayerSplitter) -> None:
    if splitter.problem:
        raise CorruptError("recipe", "", f"it was accepted, but {splitter.problem}")


def _refer(collector: _Collector, splitter: LayerSplitter, op: Op) -> None:
    if op.size:
        splitter.skip_data(op.size)
    elif not collector.found or not _is_hole(collector.found[-1][0]):
        raise CorruptError("recipe", "", "an empty slice where no file is one hole")
    collector.refer(op)


def _is_hole(member: Member) -> bool:
    return member.kind is Kind.REGULAR and member.size > 0 and not member.stored_size


def _take(collector: _Collector, keep: int) -> Iterator[tuple[Member, list[Op]]]:
    found = collector.found
    end = len(found) - keep
    yield from found[:end]
    del found[:end]
