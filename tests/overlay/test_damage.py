"""Bytes that changed at rest: an error that names file and place, or records that no sync had covered are cut."""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.errors import CorruptError, PagepoolError, StoreFormatError
from pagepool.overlay import OverlayFileSystem
from pagepool.overlay.journal import frame, parse_header, scan
from pagepool.overlay.records import Code, decode, encode_sync
from pagepool.overlay.recovery import replay
from pagepool.overlay.state import State
from pagepool.vfs import RENAME_WHITEOUT
from tests.overlay.harness import PAGE, TREE, Disk, dump_overlay
from tests.overlay.test_crash import operations

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.overlay.journal import Record
    from pagepool.vfs import FileSystem

BOOT = b"b" * 16
OTHER_BOOT = b"o" * 16


class Sample:
    """A closed overlay whose journal has every kind of record, and the states that it went through."""

    def __init__(self, directory: Path, base: FileSystem) -> None:
        self.base, self.directory, self.copy = base, directory, directory.with_name("copy")
        overlay = self.open(directory)
        for operation in operations(overlay):
            operation()
        overlay.set_xattr(2, b"user.b", b"kept")
        overlay.write(3, 0, b"z" * 100)
        overlay._storage.compact()
        for operation in operations(overlay)[:15]:
            operation()
            if operation.__code__.co_names[-1] == "allocate":
                overlay.sync()
        number = overlay.create_unnamed(2, 0o600, 1, 2)
        overlay.link(number, 2, b"linked")
        overlay.release(number)
        overlay.rename(2, b"linked", 2, b"moved", RENAME_WHITEOUT)
        overlay.sync()
        self.synced = (directory / "journal").stat().st_size
        self.states = [dump_overlay(overlay)]
        for operation in operations(overlay)[:8]:
            operation()
            self.states.append(dump_overlay(overlay))
        # As it is now, without the sync of a close.
        self.files = {path.name: path.read_bytes() for path in directory.iterdir()}
        overlay.close()
        self.journal = self.files["journal"]
        header, self.start = parse_header(self.journal, directory)
        self.nonce = header.nonce
        self.records = scan(memoryview(self.journal), self.start, self.nonce, directory).records

    def open(self, directory: Path, boot: bytes = BOOT) -> OverlayFileSystem:
        """Open a copy."""
        return OverlayFileSystem.open(directory, self.base, tree=TREE, boot=boot, clock=lambda: 7)

    def outcome(self, journal: bytes, blocks: bytes | None = None, boot: bytes = BOOT) -> Any:
        """What is there with other bytes in the files; an error if that is what opening says."""
        self.copy.mkdir()
        try:
            (self.copy / "journal").write_bytes(journal)
            (self.copy / "blocks").write_bytes(self.files["blocks"] if blocks is None else blocks)
            found = self.open(self.copy, boot)
            try:
                return dump_overlay(found)
            finally:
                found.close()
        except PagepoolError as error:
            return error
        finally:
            shutil.rmtree(self.copy)

    def flipped(self, at: int) -> bytes:
        """The journal with a bit of one byte changed."""
        return self.journal[:at] + bytes([self.journal[at] ^ 1 << at % 8]) + self.journal[at + 1 :]

    def replaced(self, record: Record, body: bytes) -> bytes:
        """The journal up to a record, which is another one."""
        return self.journal[: record.start] + frame(body, record.start, self.nonce)


@pytest.fixture
def sample(tmp_path: Path, base: FileSystem, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """The sample; nothing waits for the real disk."""
    Disk(monkeypatch)
    return Sample(tmp_path / "upper", base)


def test_the_sample_has_every_kind_of_record(sample: Sample) -> None:
    assert {record.body[0] for record in sample.records} == set(Code)
    assert sample.outcome(sample.journal) == sample.states[-1]
    assert sample.outcome(sample.journal, boot=OTHER_BOOT) == sample.states[-1]


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT], ids=["same-boot", "other-boot"])
def test_a_flipped_bit_in_what_was_synced_is_reported(sample: Sample, boot: bytes) -> None:
    """Whatever record it is in, the error names the journal and the place."""
    for record in sample.records:
        if record.end > sample.synced or (record.body[0] == Code.SYNC and record.end == sample.synced):
            continue
        length = record.end - record.start
        for place in {0, 4, 6, 8, 9, 8 + (length - 8) // 2, length - 1}:
            found = sample.outcome(sample.flipped(record.start + place), boot=boot)
            assert isinstance(found, CorruptError), (record.body[0], place)
            assert str(sample.copy / "journal") in str(found)
            assert f"offset {record.start} " in str(found)


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT], ids=["same-boot", "other-boot"])
def test_a_flipped_bit_in_what_was_not_synced_is_reported_or_cut(sample: Sample, boot: bytes) -> None:
    tail = [record for record in sample.records if record.start >= sample.synced]
    assert len(tail) == len(sample.states) - 1
    reported = cut = 0
    for number, record in enumerate(tail):
        for at in range(record.start, record.end):
            found = sample.outcome(sample.flipped(at), boot=boot)
            if isinstance(found, CorruptError):
                reported += 1
                continue
            # Only what looks cut short, as the death of a process leaves it, may go in silence.
            assert boot == OTHER_BOOT or at - record.start in range(4, 8)
            # Slots of a state that came before may have been used again: then an even earlier one is taken.
            assert found in sample.states[: number + 1]
            assert boot == OTHER_BOOT or found == sample.states[number]
            cut += 1
    assert cut > 0
    assert (reported > 0) == (boot == BOOT)


def test_a_damaged_header_is_reported(sample: Sample) -> None:
    for at in range(sample.start):
        found = sample.outcome(sample.flipped(at))
        assert isinstance(found, StoreFormatError if 8 <= at < 12 else CorruptError), at
        assert str(sample.copy / "journal") in str(found)
    for size in range(sample.start):
        assert isinstance(sample.outcome(sample.journal[:size]), CorruptError)


def test_blocks_that_were_not_synced_are_compared_after_power_loss(sample: Sample) -> None:
    """The operation that wrote the block is gone, with all that came after it."""
    blocks = sample.files["blocks"]
    found = set()
    for slot in range(len(blocks) // PAGE):
        at = slot * PAGE + 50
        damaged = blocks[:at] + bytes([blocks[at] ^ 1]) + blocks[at + 1 :]
        outcome = sample.outcome(sample.journal, damaged, OTHER_BOOT)
        # A block of what was synced has no checksum any more: it is the file system's to keep.
        found.add(sample.states.index(outcome) if outcome in sample.states else None)
    assert len(found - {None, len(sample.states) - 1}) >= 2


def test_blocks_that_were_not_synced_are_compared_after_the_death_of_the_process(sample: Sample) -> None:
    """What the disk did not take, and memory has forgotten, is an error, and not zeros."""
    found = set()
    for slot in range(len(sample.files["blocks"]) // PAGE):
        lost = bytearray(sample.files["blocks"])
        lost[slot * PAGE : (slot + 1) * PAGE] = bytes(PAGE)
        outcome = sample.outcome(sample.journal, bytes(lost))
        if isinstance(outcome, CorruptError):
            assert f"{sample.copy / 'blocks'}: slot {slot} " in str(outcome)
            found.add(slot)
    assert found


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT], ids=["same-boot", "other-boot"])
def test_what_came_while_a_sync_was_under_way_is_not_covered_by_it(sample: Sample, boot: bytes) -> None:
    """Though the record of the sync stands behind it, and nothing else: its block may be missing."""
    tail = [record for record in sample.records if record.start >= sample.synced]
    number, record = next(each for each in enumerate(tail) if each[1].body[0] == Code.CONTENT)
    blocks = bytearray(sample.files["blocks"])
    for _, slot, count in decode(record.body)[1][-2]:
        blocks[slot * PAGE : (slot + count) * PAGE] = bytes(count * PAGE)
    journal = sample.journal[: record.end] + frame(encode_sync(record.start), record.end, sample.nonce)
    found = sample.outcome(journal, bytes(blocks), boot)
    if boot == BOOT:
        assert isinstance(found, CorruptError)
    else:
        assert found == sample.states[number]


def test_an_arena_that_is_too_short_is_reported(sample: Sample) -> None:
    found = sample.outcome(sample.journal, sample.files["blocks"][:PAGE])
    assert isinstance(found, CorruptError)
    assert str(sample.copy / "blocks") in str(found)


def test_records_that_contradict_each_other_are_reported(sample: Sample) -> None:
    """With good checksums, as only a mistake or a forger makes them."""
    last = sample.records[-1]
    for body in (
        b"\xee",
        b"\x03short",
        bytes([Code.FORGET]) + (10**6).to_bytes(8, "little"),
        bytes([Code.LINK]) + bytes(24) + b"name",
        bytes([Code.NO_XATTR]) + bytes(8) + (10**6).to_bytes(8, "little") + bytes(8) + b"name",
        *(bytes([code]) for code in Code),
    ):
        found = sample.outcome(sample.replaced(last, body))
        assert isinstance(found, CorruptError), body
        assert f"offset {last.start} " in str(found)


def test_any_bytes_in_a_good_frame_are_a_record_or_an_error(sample: Sample, tmp_path: Path) -> None:
    """Bodies of every kind, changed at random: applied, or refused with an error that names the place."""
    source = random.Random(9)
    # The sizes of a snapshot's tables are taken on trust.
    bodies = [bytes(record.body) for record in sample.records if record.body[0] != Code.BLOCKS]
    path, at, results = tmp_path / "journal", len(sample.journal), {True: 0, False: 0}
    for _ in range(2000):
        body = bytearray(source.choice(bodies))
        for _ in range(source.randrange(1, 4)):
            body[source.randrange(len(body))] = source.choice((0, 1, 255, source.randrange(256)))
        if source.random() < 0.2:
            del body[source.randrange(1, len(body) + 1) :]
        whole = memoryview(sample.journal + frame(bytes(body), at, sample.nonce))
        records = scan(whole, sample.start, sample.nonce, path).records
        state = State(sample.base, sample.base.usage().inodes, lambda _: None)
        try:
            replay(records, state, path)
        except CorruptError as error:
            assert f"{path}: the record at offset {at} " in str(error)  # noqa: PT017 (either is right)
            results[False] += 1
        else:
            results[True] += 1
    assert min(results.values()) > 200


def test_a_slot_that_two_blocks_have_is_reported(sample: Sample) -> None:
    writes = [bytes(record.body) for record in sample.records if record.body[0] == Code.CONTENT]
    again = writes[-1][:9] + (3).to_bytes(8, "little") + writes[-1][17:]
    found = sample.outcome(sample.journal + frame(again, len(sample.journal), sample.nonce))
    assert isinstance(found, CorruptError)
    assert "belongs to two blocks" in str(found)


def test_bytes_that_look_like_a_sync_are_none(sample: Sample) -> None:
    """A container cannot make a cut look like damage: it does not know the nonce, and a place is part of the sum."""
    at = len(sample.journal)
    fake = frame(encode_sync(at + 20), at + 20, sample.nonce + 1)
    torn = sample.journal + bytes(20) + fake
    assert sample.outcome(torn, boot=OTHER_BOOT) == sample.states[-1]
    moved = frame(encode_sync(at + 20), at + 21, sample.nonce)
    assert sample.outcome(sample.journal + bytes(20) + moved, boot=OTHER_BOOT) == sample.states[-1]
    later = frame(encode_sync(at + 21), at + 20, sample.nonce)
    assert sample.outcome(sample.journal + bytes(20) + later, boot=OTHER_BOOT) == sample.states[-1]
    real = frame(encode_sync(at + 20), at + 20, sample.nonce)
    assert isinstance(sample.outcome(sample.journal + bytes(20) + real, boot=OTHER_BOOT), CorruptError)


def test_an_arena_that_shrinks_while_it_is_open_is_reported(tmp_path: Path, base: FileSystem) -> None:
    overlay = OverlayFileSystem.open(tmp_path / "upper", base, tree=TREE)
    try:
        overlay.write(3, 0, b"x" * 100)
        os.truncate(tmp_path / "upper" / "blocks", 10)
        with pytest.raises(CorruptError, match="it ends in slot 0"):
            overlay.read(3, 0, 100)
    finally:
        overlay.close()
