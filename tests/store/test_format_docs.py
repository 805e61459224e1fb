"""The examples in docs/format are what the code writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from blake3 import blake3

from pagepool.digest import Digest
from pagepool.extents import EXTENT_SIZE, Role, encode_frame
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import (
    BlobRecord,
    ContentKind,
    Job,
    JobKind,
    LayerRecord,
    LayerState,
    LeaseRecord,
    Location,
    encode_object,
)
from pagepool_service.store.totals import Totals

DOCS = Path(__file__).parents[2] / "docs" / "format"
EXAMPLE = re.compile(r"<!-- example: (\w+) -->\n```\n([0-9a-f\s]+)```")

WRITTEN = {
    "frame": encode_frame([(blake3(data).digest(), data) for data in (b"hello", b"world")], Role.FILES).payload,
    "location": Location(7, 10, 5).encode(),
    "object": encode_object(2 * EXTENT_SIZE + 1, [b"\x11" * 32, b"\x11" * 32, b"\x22" * 32]),
    "layer": LayerRecord(3, 10_240, 2, 5).encode(),
    "blob": BlobRecord(ContentKind.OBJECT, LayerState.UNMOUNTABLE, 5, 10**9, b"\x33" * 32, reason="no").encode(),
    "job": Job(JobKind.INGEST, 1, Digest("sha256", b"\x44" * 32), attempts=2, recipe=9).encode(),
    "lease": LeaseRecord(
        10**9, 61 * 10**9, Digest("sha256", b"\x55" * 32), (Digest("sha256", b"\x66" * 32),), "node a"
    ).encode(),
}


def _examples() -> dict[str, bytes]:
    found = {}
    for page in ("frame.md", "store.md"):
        for name, text in EXAMPLE.findall((DOCS / page).read_text()):
            found[name] = bytes.fromhex("".join(text.split()))
    return found


@pytest.mark.parametrize("name", WRITTEN)
def test_an_example_is_what_is_written(name: str) -> None:
    assert _examples()[name] == WRITTEN[name]


def test_every_example_is_compared() -> None:
    assert _examples().keys() == WRITTEN.keys()


def test_every_table_is_listed_with_its_code() -> None:
    text = (DOCS / "store.md").read_text()
    for table in Table:
        assert f"`{table.label}`" in text
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)
    for code, label in rows:
        assert Table[label.upper()].code == bytes((int(code),))


def test_the_totals_have_as_many_fields_as_the_page_says() -> None:
    assert len(Totals.__dataclass_fields__) == 11
