"""The whole state as records: how a compacted journal begins. Replayed, they make an equal state."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

from pagepool.image.member import Kind
from pagepool.overlay.records import (
    encode_blocks,
    encode_entries,
    encode_gone,
    encode_node,
    encode_node_xattrs,
    encode_numbers,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pagepool.overlay.blockmap import BlockMap
    from pagepool.overlay.node import Node
    from pagepool.overlay.state import State

# Of entries, runs or numbers in one record.
_BATCH: Final = 1024
_T = TypeVar("_T")


def encode_state(state: State) -> Iterator[bytes]:
    """The bodies of the records. The state must not change meanwhile."""
    yield encode_numbers(state.next_ino)
    for numbers in _batches(sorted(state.gone)):
        yield encode_gone(numbers)
    for node in state.nodes.values():
        yield from _encode_node(node)


def _encode_node(node: Node) -> Iterator[bytes]:
    regular = node.kind is Kind.REGULAR
    yield encode_node(
        *(node.ino, node.kind, node.mode, node.uid, node.gid, node.size, node.nlink),
        (node.atime_ns, node.mtime_ns, node.ctime_ns),
        *(node.device, node.parent, node.blocks.base_end if regular else 0, node.target),
    )
    if node.xattrs is not None and (node.based or node.xattrs):
        yield encode_node_xattrs(node.ino, node.xattrs.items())
    if regular:
        for runs in _batches(_runs(node.blocks)):
            yield encode_blocks(node.ino, runs)
    elif node.kind is Kind.DIRECTORY:
        for entries in _batches(node.entries.items()):
            yield encode_entries(node.ino, entries)


def _runs(table: BlockMap) -> Iterator[tuple[int, int, int]]:
    last = max(table.chunks, default=-1) + 1 << 10
    return (run for run in table.runs(0, last) if run[2])


def _batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch
