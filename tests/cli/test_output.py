"""What commands print: sizes, tables, and text that should not reach a terminal."""

from __future__ import annotations

import pytest

from pagepool.cli import output


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1234, "1.2 kB"),
        (999_949, "999.9 kB"),
        (999_960, "1.0 MB"),
        (63_334_854, "63.3 MB"),
        (10**18, "1.0 EB"),
        (-1500, "-1.5 kB"),
        (None, ""),
        (True, ""),
        ("x", ""),
    ],
)
def test_sizes(size: object, text: str) -> None:
    assert output.human_size(size) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 日本", "plain ä 日本"),
        ("\x1b[2J\n\t\x7f", "\\x1b[2J\\n\\t\\x7f"),
        ("\u202eevil", "\\u202eevil"),
        ("a\udc80", "a\\x80"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert output.printable(text) == shown


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("A", "SIZE"), [("x", "1 B"), ("longer\x1b", "10 B")], right=(1,))
    assert capsys.readouterr().out == "A           SIZE\nx            1 B\nlonger\\x1b  10 B\n"
