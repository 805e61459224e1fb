"""Numbers of nodes: what they are, and what of them outlives a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pagepool.errors import BusyError
from pagepool.node.lazy import nodes
from pagepool.node.lazy.nodes import NodeTable, Object

_ONE, _TWO, _THREE = (bytes((number,)) * 32 for number in (1, 2, 3))


def test_directories() -> None:
    """Fixed numbers, and no others."""
    assert nodes.child_number(nodes.ROOT, b"fetch") == nodes.FETCH
    assert nodes.child_number(nodes.ROOT, b"fail") == nodes.FAIL
    assert nodes.child_number(nodes.FETCH, b"ab") == nodes.FETCH_CHILDREN + 0xAB
    assert nodes.child_number(nodes.FAIL, b"00") == nodes.FAIL_CHILDREN
    for parent, name in (
        (nodes.ROOT, b"ab"),
        (nodes.FETCH, b"AB"),
        (nodes.FETCH, b"abc"),
        (nodes.FETCH_CHILDREN, b"ab"),
    ):
        assert nodes.child_number(parent, name) is None
    assert nodes.is_directory(nodes.FAIL_CHILDREN + 255)
    assert not nodes.is_directory(nodes.FAIL_CHILDREN + 256)
    assert not nodes.is_directory(4)


def test_digests() -> None:
    """A digest is the directory's two digits and the name's 62, in lower case."""
    digest = bytes(range(171, 203))
    assert nodes.digest_of(nodes.FETCH_CHILDREN + 171, digest.hex()[2:].encode()) == digest
    for name in (b"", digest.hex()[2:].upper().encode(), digest.hex().encode(), b"\xff" * 62):
        assert nodes.digest_of(nodes.FETCH_CHILDREN + 171, name) is None
    assert nodes.digest_of(nodes.FETCH, digest.hex()[2:].encode()) is None


def test_numbers_outlive_the_table(tmp_path: Path) -> None:
    """A number, once given, is there for the next table, and for the same object."""
    table = NodeTable(tmp_path / "nodes")
    one, two = table.add(_ONE, 10), table.add(_TWO, 20)
    assert table.add(_ONE, 10) == one != two
    with pytest.raises(BusyError, match="another process"):
        NodeTable(tmp_path / "nodes")
    table.close()
    again = NodeTable(tmp_path / "nodes")
    assert (again.number(_ONE), again.number(_TWO), again.number(_THREE)) == (one, two, None)
    assert (again.object(one), again.object(two)) == (Object(_ONE, 10), Object(_TWO, 20))
    assert again.object(two + 1) is None
    assert again.object(5) is None
    again.close()


@pytest.mark.parametrize("torn", range(1, 48))
def test_torn_tail(tmp_path: Path, torn: int) -> None:
    """A record that is not whole was told to nobody; its number is given to the next object."""
    path = tmp_path / "nodes"
    table = NodeTable(path)
    one, two = table.add(_ONE, 10), table.add(_TWO, 20)
    table.close()
    os.truncate(path, 48 + torn)
    again = NodeTable(path)
    assert (again.number(_ONE), again.number(_TWO)) == (one, None)
    assert again.add(_THREE, 30) == two
    again.close()


def test_damaged_record(tmp_path: Path) -> None:
    """It keeps its place: no number changes its meaning."""
    path = tmp_path / "nodes"
    table = NodeTable(path)
    one, two = table.add(_ONE, 10), table.add(_TWO, 20)
    table.close()
    with path.open("r+b") as file:
        file.write(b"\xff")
    again = NodeTable(path)
    assert again.object(one) is None
    assert again.number(_TWO) == two
    assert again.add(_ONE, 10) == two + 1
    again.close()
