"""docs/format/pool.md says what is on the disk: read back by its offsets, without the code that wrote it."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from blake3 import blake3

from pagepool.extents import EXTENT_SIZE
from pagepool.pool import Pool, Scrubber
from tests.pool.helpers import PAGE, thing

BUDGET = 16 * EXTENT_SIZE
PAGE_OF_DOCS = Path(__file__).parents[2] / "docs" / "format" / "pool.md"


def counter(state: bytes, at: int) -> int:
    """A counter of the `state` file."""
    return int.from_bytes(state[at : at + 8], "little")


@pytest.fixture
def used(place: Path) -> Path:
    """A pool's directory with something of everything in it; closed."""
    one = thing(1, 2 * EXTENT_SIZE + 5)
    with Pool.open(place, budget=BUDGET, durable=True, reserve=12345) as pool:
        for number in range(2, 100):
            with pool.put(thing(number).digest, thing(number).data) or pytest.fail("not kept"):
                pass
        pool.sync()
        for number in range(100, 105):
            big = thing(number, 3 * EXTENT_SIZE)
            with pool.put(big.digest, big.data) or pytest.fail("not kept"):
                pass
        with pool.partial(one.digest, one.size, one.extents) as partial:
            partial.write(2, one.parts[2])
        pool.get(bytes(32))
        Scrubber(pool).run(3)
    return place


def test_every_file_is_in_the_table(used: Path) -> None:
    """And the table names no other one."""
    table = PAGE_OF_DOCS.read_text().split("## Files")[1].split("\n\n")[1]
    documented = set(re.findall(r"`([^`]+)`", "".join(row.split("|")[1] for row in table.splitlines()[2:])))
    top = {name.split("/")[0] for name in documented if not name.startswith(".")}
    assert {path.name for path in used.iterdir()} == top
    assert {path.suffix for path in (used / "partial").iterdir()} == {".data", ".map"}
    for row in table.splitlines()[2:]:
        name, mode = (cell.strip(" `") for cell in row.split("|")[1:3])
        if (used / name).is_file():
            assert f"{(used / name).stat().st_mode & 0o7777:04o}" == mode, name
    modes = {path.name: path.stat().st_mode & 0o777 for path in used.iterdir() if path.is_dir()}
    assert modes == {"objects": 0o755, "partial": 0o700, "retired": 0o700, "tmp": 0o700}


def test_format_and_epoch(used: Path) -> None:
    """Lines of text."""
    with Pool.open(used, budget=BUDGET) as pool:
        assert (used / "format").read_text() == f"pagepool pool\nversion 1\nid {pool.id}\ndurable yes\n"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    match = re.fullmatch(r"boot (\w{32})\nsynced (\d+)\nlast (\d+)\n", (used / "epoch").read_text())
    assert match is not None
    assert match[1] == boot
    assert int(match[3]) == int(match[2]) + 1
    times = {path.stat().st_mtime for path in (used / "objects").rglob("*") if path.is_file()}
    assert times <= {10**9 + int(match[2]), 10**9 + int(match[3])}
    assert 10**9 + int(match[3]) in times


def test_state(used: Path) -> None:
    """Every counter, compared with the files."""
    state = (used / "state").read_bytes()
    files = [path for path in (used / "objects").rglob("*") if path.is_file()]
    pages = sum(-(-path.stat().st_size // PAGE) * PAGE for path in files)
    assert len(state) == PAGE
    assert state[:8] == b"PPSTATE\x01"
    assert (counter(state, 8), counter(state, 16)) == (0, 1)
    assert counter(state, 24) == BUDGET
    assert counter(state, 32) == pages + PAGE
    assert counter(state, 40) == len(files)
    assert counter(state, 48) == sum(path.stat().st_size for path in files)
    assert counter(state, 56) == pages
    assert (counter(state, 64), counter(state, 72)) == (1, PAGE)
    assert (counter(state, 80), counter(state, 88)) == (0, 0)
    assert (counter(state, 96), counter(state, 104)) == (0, 1)
    assert counter(state, 112) > 0
    assert counter(state, 120) >= PAGE * counter(state, 112)
    assert counter(state, 136) == int((used / "epoch").read_text().split()[-1])
    assert counter(state, 144) == 5 * 3 * EXTENT_SIZE
    assert (counter(state, 152), counter(state, 160)) == (0, 12345)


def test_map(used: Path) -> None:
    """Head and marks."""
    one = thing(1, 2 * EXTENT_SIZE + 5)
    (path,) = (used / "partial").glob("*.map")
    key = blake3(one.digest + struct.pack("<Q", one.size) + b"".join(one.extents)).hexdigest()
    assert path.name == f"{key}.map"
    raw = path.read_bytes()
    assert raw[:8] == b"PPMAP\0\0\x01"
    assert raw[8:24].hex() == Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    assert struct.unpack("<IIQ", raw[24:40]) == (0, 3, one.size)
    assert raw[40:72] == one.digest
    assert raw[72:80] == bytes(8)
    assert raw[80:] == bytes((0, 0, 1))


def test_log_and_queue(used: Path) -> None:
    """Together they know every object; the log is what came after the queue."""
    queue, log, state = ((used / name).read_bytes() for name in ("queue", "log", "state"))
    assert queue[:8] == b"PPQUEUE\x01"
    assert struct.unpack("<Q", queue[8:16])[0] == counter(state, 128)
    assert queue[-32:] == blake3(queue[:-32]).digest()
    entries = list(struct.iter_unpack("<BBBxxxxxQ32s", queue[16:-32]))
    records = list(struct.iter_unpack("<B7sQ32s", log))
    assert all(queue_number < 3 and uses < 4 and kind < 2 for queue_number, uses, kind, _, _ in entries)
    assert {what for what, _, _, _ in records} <= {0, 1, 2, 3}
    known = {name for number, _, kind, _, name in entries if number < 2 and not kind}
    known |= {name for what, _, _, name in records if what == 1}
    present = {path.parent.name + path.name for path in (used / "objects").rglob("*") if path.is_file()}
    assert present <= {name.hex() for name in known}
    one = thing(1, 2 * EXTENT_SIZE + 5)
    key = blake3(one.digest + struct.pack("<Q", one.size) + b"".join(one.extents)).digest()
    assert (2, bytes(7), PAGE, key) in records


def test_scrub(used: Path) -> None:
    """The third object by name."""
    names = sorted(path.parent.name + path.name for path in (used / "objects").rglob("*") if path.is_file())
    assert (used / "scrub").read_text() == names[2] + "\n"
