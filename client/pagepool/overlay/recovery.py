"""From a journal on disk to a state: which records count, and what they make.

After the death of a process alone every whole record counts: what it refers to was written before it. After power loss
what the last sync covered is there, and of the records since then, and of their blocks, any page may be missing. The
records carry checksums of their blocks, so the longest beginning of the journal is taken whose blocks are all there:
records are all or nothing, and they come in order.

What no sync has covered may not reach the disk any more, though nobody lost power: a flush that failed is told once,
and then the kernel takes pages that are only in memory for written. So what is not covered is named, to be written
once more.

Reads files, writes none.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from pagepool.errors import CorruptError, InvalidError
from pagepool.overlay.journal import damaged, parse_header, scan
from pagepool.overlay.records import Code, decode, read_boot
from pagepool.overlay.state import State
from pagepool.vfs.interface import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pagepool.overlay.arena import Arena
    from pagepool.overlay.journal import Header, Record
    from pagepool.overlay.records import Piece
    from pagepool.overlay.slots import Run
    from pagepool.vfs.interface import FileSystem


class Recovered(NamedTuple):
    """What a journal says.

    Args:
        header: of the journal.
        state: after its last record that counts.
        end: where that record ends; the rest is to be cut.
        clean: whether a sync has covered all of it.
        durable: up to where one has.
        unsynced: slots in use that no sync has covered.
    """

    header: Header
    state: State
    end: int
    clean: bool
    durable: int
    unsynced: Sequence[Run]


def recover(path: Path, base: FileSystem, tree: bytes, arena: Arena, boot: bytes) -> Recovered:
    """Read a journal.

    Args:
        path: the journal.
        base: the image.
        tree: digest of its tree.
        arena: where its blocks are.
        boot: the machine's boot now; another than the journal's means that power may have been lost.

    Raises:
        InvalidError: the overlay lies over another tree.
        CorruptError: damage that no crash can do.
        StoreFormatError: a format of another version.
    """
    data = memoryview(path.read_bytes())
    header, start = parse_header(data, path)
    if header.tree != tree:
        raise InvalidError(str(path.parent), f"it lies over tree {header.tree.hex()}, not over {tree.hex()}")
    found = scan(data, start, header.nonce, path)
    records = found.records
    # Behind missing pages there may be openings of this boot; but then those pages are of an earlier one.
    last = next((read_boot(record.body) for record in reversed(records) if record.body[0] == Code.OPEN), b"")
    blocks = _Blocks(arena)
    # What follows the last durable record in a clean journal is its sync, and openings: they need no other.
    clean = found.end == len(data) and all(
        record.body[0] in (Code.SYNC, Code.OPEN) for record in records if record.start >= found.durable
    )
    if last != boot or not clean:
        records = _with_blocks(records, found.durable, header, base, blocks, path)
    if last == boot and (found.wrong or blocks.wrong):
        if found.end == len(data):
            raise CorruptError("overlay", str(arena.path), f"slot {min(blocks.wrong)} has another checksum")
        raise damaged(path, found.end)
    state = replay(records, State(base, header.base_inodes, lambda _: None), path)
    end = records[-1].end if records else start
    # What was read after a loss of power was read from the disk.
    unsynced = blocks.runs() if last == boot else []
    return Recovered(header, state, end, clean and end == len(data), min(found.durable, end), unsynced)


def replay(records: Sequence[Record], state: State, path: Path) -> State:
    """Apply records.

    Raises:
        CorruptError: they contradict each other.
    """
    for record in records:
        _apply(record, state, path)
    return state


def _apply(record: Record, state: State, path: Path) -> tuple[Sequence[Piece], Sequence[int]]:
    """Apply a record; returns the blocks that it refers to, and their checksums."""
    try:
        name, arguments = decode(record.body)
        getattr(state, name)(*arguments)
    except (LookupError, ArithmeticError, ValueError, OSError, AttributeError, TypeError, struct.error) as error:
        reason = f"the record at offset {record.start} cannot be right ({error})"
        raise CorruptError("overlay journal", str(path), reason) from error
    return arguments[-2:] if name in ("set", "content") else ((), ())


def _with_blocks(
    records: list[Record], durable: int, header: Header, base: FileSystem, blocks: _Blocks, path: Path
) -> list[Record]:
    """The longest beginning of records whose blocks are what was written."""
    state = State(base, header.base_inodes, blocks.freed)
    good = 0
    for number, record in enumerate(records, 1):
        pieces, crcs = _apply(record, state, path)
        if record.start >= durable:
            blocks.written(pieces, crcs)
        if not blocks.wrong:
            good = number
    return records[:good]


class _Blocks:
    """Which slots do not hold what the last record that names them says."""

    def __init__(self, arena: Arena) -> None:
        self.wrong: set[int] = set()
        self._used: set[int] = set()
        self._arena = arena
        self._checksums: dict[int, int] = {}

    def freed(self, runs: Sequence[Run]) -> None:
        """Nothing refers to them any more."""
        if self._used:
            for start, count in runs:
                self.wrong.difference_update(range(start, start + count))
                self._used.difference_update(range(start, start + count))

    def written(self, pieces: Sequence[Piece], crcs: Sequence[int]) -> None:
        """A record says what they hold."""
        slots = (slot + place for _, slot, count in pieces for place in range(count))
        for slot, crc in zip(slots, crcs, strict=True):
            self._used.add(slot)
            if self._checksum(slot) == crc:
                self.wrong.discard(slot)
            else:
                self.wrong.add(slot)

    def runs(self) -> list[Run]:
        """The slots that were written, and that something refers to."""
        found: list[Run] = []
        for slot in sorted(self._used):
            if found and sum(found[-1]) == slot:
                found[-1] = found[-1][0], found[-1][1] + 1
            else:
                found.append((slot, 1))
        return found

    def _checksum(self, slot: int) -> int:
        found = self._checksums.get(slot)
        if found is None:
            try:
                found = crc32(self._arena.read(slot, 0, PAGE_SIZE))
            except CorruptError:  # the file ends before it
                found = -1
            self._checksums[slot] = found
        return found
