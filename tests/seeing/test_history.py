"""The file of samples: whatever happens to it, what is read is what was written, or nothing."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path

import pytest

from pagepool_service.seeing.history import FIELDS, RINGS, History
from pagepool_service.seeing.tally import Counts, Tally

START = 1_800_000_000


def values(number: int) -> dict[str, int | None]:
    """The fields of a sample, each another number."""
    return {name: 1000 * number + place for place, name in enumerate(FIELDS)}


def row(number: int) -> tuple[int, ...]:
    return tuple(1000 * number + place for place in range(len(FIELDS)))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """By another process, too, and after a restart."""
    history = History(tmp_path)
    assert history.samples("hour", START, 100) == []
    for number in range(5):
        history.add(START + 10 * number, values(number))
    again = History(tmp_path)
    again.add(START + 50, values(5))
    found = History(tmp_path).samples("hour", START + 50, 100)
    assert found == [(START + 10 * number, row(number)) for number in range(6)]
    # Five minutes have one sample, that after a restart may be a later one.
    assert [moment for moment, _ in History(tmp_path).samples("week", START + 50, 100)] == [START + 50]


def test_it_stays_as_large_as_it_is(tmp_path: Path) -> None:
    """However long it runs: an hour and a week are kept, the oldest goes."""
    history = History(tmp_path)
    history.add(START, values(0))
    size = (tmp_path / "history").stat().st_size
    assert size < 300_000
    for number in range(0, 9 * 86400, 300):
        history.add(START + number, values(number // 300 % 1000))
    now = START + 9 * 86400 - 300
    assert (tmp_path / "history").stat().st_size == size
    week = history.samples("week", now, 10_000)
    assert [moment for moment, _ in week] == list(range(now - 300 * 2015, now + 1, 300))
    assert len(history.samples("hour", now, 10_000)) == 12


def test_fewer_are_chosen_evenly(tmp_path: Path) -> None:
    """The newest is among them."""
    history = History(tmp_path)
    for number in range(360):
        history.add(START + 10 * number, values(number))
    found = [moment for moment, _ in history.samples("hour", START + 3590, 100)]
    assert len(found) == 90
    assert found[-1] == START + 3590
    assert {later - earlier for earlier, later in pairwise(found)} == {40}


def test_unknown_fields(tmp_path: Path) -> None:
    """Are unknown, not zero."""
    history = History(tmp_path)
    history.add(START, {"hits": 0, "misses": None})
    ((_, found),) = history.samples("hour", START, 10)
    assert found == (0, *(None for _ in FIELDS[1:]))


@pytest.mark.parametrize("seed", range(20))
def test_torn_samples_are_left_out(tmp_path: Path, seed: int) -> None:
    """Bytes that anything changed are never shown, and the file goes on."""
    history = History(tmp_path)
    for number in range(100):
        history.add(START + 10 * number, values(number))
    path = tmp_path / "history"
    raw = bytearray(path.read_bytes())
    rng = random.Random(seed)
    for _ in range(200):
        raw[rng.randrange(64, len(raw))] ^= rng.randrange(1, 256)
    path.write_bytes(raw)
    written = {(START + 10 * number, row(number)) for number in range(100)}
    for span in RINGS:
        assert set(History(tmp_path).samples(span, START + 1000, 10_000)) <= written
    History(tmp_path).add(START + 1000, values(100))
    assert (START + 1000, row(100)) in History(tmp_path).samples("hour", START + 1000, 10_000)


@pytest.mark.parametrize("content", [b"", b"something else", b"PPHIST\r\n\x02\0\0\0" + bytes(300_000)])
def test_files_of_another_form_are_replaced(tmp_path: Path, content: bytes) -> None:
    """As is one that another version wrote."""
    (tmp_path / "history").write_bytes(content)
    history = History(tmp_path)
    assert history.samples("hour", START, 10) == []
    history.add(START, values(1))
    assert history.samples("hour", START, 10) == [(START, row(1))]


def test_its_page_of_documentation() -> None:
    """Has the places of what is there, and as many fields."""
    text = (Path(__file__).parents[2] / "docs" / "format" / "history.md").read_text()
    for ring in RINGS.values():
        assert f"| {ring.start} | {ring.places} \N{MULTIPLICATION SIGN} 104 |" in text
    offsets = re.findall(r"^\| (\d+) \| 8 \|", text.partition("A sample lies")[2], re.MULTILINE)
    assert offsets == [str(8 * place) for place in range(len(FIELDS) + 1)]


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    """Nothing is kept, and nothing fails."""
    (tmp_path / "history").mkdir()
    history = History(tmp_path)
    history.add(START, values(1))
    assert history.samples("hour", START, 10) == []


def test_workers_add_up() -> None:
    """Each in its own place."""
    tally = Tally(3)
    assert tally.total() == Counts(0, 0, 0)
    tally.add(0, 5, 3, 700)
    tally.add(2, 1, 0, 1 << 40)
    tally.add(0, 1, 1, 1)
    assert tally.total() == Counts(7, 4, 701 + (1 << 40))
