"""The examples in docs/format/overlay.md are what the code writes, and its tables name every record."""

from __future__ import annotations

import re
from pathlib import Path
from zlib import crc32

import pytest

from pagepool.overlay.journal import Header
from pagepool.overlay.records import KINDS, Code, Piece, encode_content

PAGE = (Path(__file__).parents[2] / "docs" / "format" / "overlay.md").read_text()
EXAMPLE = re.compile(r"<!-- example: (\w+) -->\n```\n([0-9a-f\s]+)```")

_BLOCKS = (bytes(4096), b"x" + bytes(4095))
WRITTEN = {
    "header": Header(b"\x11" * 32, 8, {"repository": "app"}, 5).encode(),
    "content": encode_content(10, 9, 4097, 0, (0, 0), [Piece(0, 7, 2)], [crc32(block) for block in _BLOCKS]),
}


def _examples() -> dict[str, bytes]:
    return {name: bytes.fromhex("".join(text.split())) for name, text in EXAMPLE.findall(PAGE)}


@pytest.mark.parametrize("name", WRITTEN)
def test_an_example_is_what_is_written(name: str) -> None:
    assert _examples()[name] == WRITTEN[name]


def test_every_example_is_compared() -> None:
    assert _examples().keys() == WRITTEN.keys()


def test_every_record_is_listed_with_its_code() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", PAGE, re.MULTILINE)
    assert {(int(code), name) for code, name in rows} == {(code.value, code.name) for code in Code}


def test_there_are_as_many_kinds_as_the_page_says() -> None:
    assert len(KINDS) == 7
    assert f"{len(KINDS) - 1} socket" in PAGE
