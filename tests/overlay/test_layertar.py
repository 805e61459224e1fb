"""The tar of a diff: order, parents, links, what is refused, and how much memory it takes."""

from __future__ import annotations

import io
import tarfile
import tracemalloc

import pytest

from pagepool.errors import LayerInvalidError
from pagepool.image import Kind, Node
from pagepool.overlay import Change, ChangeKind, iter_layer, plan_diff
from pagepool.overlay.layertar import PIECE
from pagepool.vfs import ROOT, Attributes
from tests.overlay.layers import empty, make_layer
from tests.support.nodes import NodeFileSystem


def _members(layer: bytes) -> list[tuple[str, bytes, str, int]]:
    """Name, type, target and mode of each member, as Python's tarfile has them."""
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        return [(info.name, info.type, info.linkname, info.mode) for info in tar]


@pytest.fixture
def base() -> NodeFileSystem:
    """/d (0700) with a and b, one file, and c; /z."""
    system = empty()
    directory = system.new(Kind.DIRECTORY, mode=0o700)
    system.put(system.root, b"d", directory)
    linked = system.new(Kind.REGULAR, b"x" * 1000)
    system.put(directory, b"a", linked)
    system.put(directory, b"b", linked)
    system.put(directory, b"c", system.new(Kind.REGULAR, b"c"))
    system.put(system.root, b"z", system.new(Kind.DIRECTORY))
    system.settle()
    return system


def _copy(base: NodeFileSystem) -> tuple[NodeFileSystem, dict[bytes, Node]]:
    now = base.copy()
    now.kept = max(base.nodes)
    return now, dict(now.walk())


def test_nothing_is_an_empty_tar(base: NodeFileSystem) -> None:
    assert make_layer(base.copy(), base) == bytes(1024)


def test_directories_on_the_way_are_written_as_they_are(base: NodeFileSystem) -> None:
    now, nodes = _copy(base)
    now.write(nodes[b"d/c"], b"new")
    assert _members(make_layer(now, base, now)) == [
        (".", tarfile.DIRTYPE, "", 0o755),
        ("d", tarfile.DIRTYPE, "", 0o700),
        ("d/c", tarfile.REGTYPE, "", 0o644),
    ]


def test_all_names_of_a_changed_file_come_with_it(base: NodeFileSystem) -> None:
    """A link made to a file that did not change: its content is written, with all that is one with it."""
    now, nodes = _copy(base)
    now.put(nodes[b"z"], b"new", nodes[b"d/b"])
    now.settle()
    assert _members(make_layer(now, base, now))[1:] == [
        ("d", tarfile.DIRTYPE, "", 0o700),
        ("d/a", tarfile.REGTYPE, "", 0o644),
        ("d/b", tarfile.LNKTYPE, "d/a", 0o644),
        ("z", tarfile.DIRTYPE, "", 0o644),
        ("z/new", tarfile.LNKTYPE, "d/a", 0o644),
    ]


def test_whiteouts_and_opaque_marks(base: NodeFileSystem) -> None:
    now, nodes = _copy(base)
    now.forget(nodes[b"d"])
    now.put(now.root, b"d", now.new(Kind.DIRECTORY))
    now.put(now.root.entry(b"d") or now.root, b"c", now.new(Kind.FIFO))
    now.remove(now.root, b"z")
    now.settle()
    assert _members(make_layer(now, base, now)) == [
        (".", tarfile.DIRTYPE, "", 0o755),
        ("d", tarfile.DIRTYPE, "", 0o644),
        ("d/.wh..wh..opq", tarfile.REGTYPE, "", 0),
        ("d/c", tarfile.FIFOTYPE, "", 0o644),
        (".wh.z", tarfile.REGTYPE, "", 0),
    ]


def test_a_name_that_would_remove_is_refused(base: NodeFileSystem) -> None:
    now, nodes = _copy(base)
    now.put(nodes[b"d"], b".wh.c", now.new(Kind.REGULAR))
    now.settle()
    with pytest.raises(LayerInvalidError, match=r"'d/\.wh\.c': its name begins with \.wh\."):
        make_layer(now, base, now)


def test_the_same_bytes_each_time(base: NodeFileSystem) -> None:
    """Whatever the order in which things came to be."""
    now, other = empty(), empty()
    for system, names in ((now, (b"a", b"b", b"c")), (other, (b"c", b"b", b"a"))):
        for name in names:
            system.put(system.root, name, system.new(Kind.REGULAR, name))
        system.root.xattrs = dict.fromkeys(names, b"1")
        system.settle()
    assert make_layer(now, base) == make_layer(other, base)


class _Big(NodeFileSystem):
    """Every file is of zeros, and of this size."""

    size = 9 << 30
    present = 9 << 30
    _zeros = memoryview(bytes(PIECE))

    def attributes(self, ino: int) -> Attributes:
        found = super().attributes(ino)
        return found._replace(size=self.size) if found.kind is Kind.REGULAR else found

    def read(self, ino: int, offset: int, size: int) -> memoryview:
        assert self.nodes[ino].kind is Kind.REGULAR
        return self._zeros[: max(0, min(size, self.present - offset))]


@pytest.fixture
def big() -> _Big:
    system = _Big(Node(Kind.DIRECTORY, 0o755, children={}), {})
    system.put(system.root, b"big", system.new(Kind.REGULAR))
    system.settle()
    return system


def test_a_file_of_nine_gigabytes_takes_no_memory(big: _Big) -> None:
    changes = plan_diff(big, empty())
    head, total = b"", 0
    tracemalloc.start()
    try:
        for chunk in iter_layer(big, changes):
            assert len(chunk) <= PIECE
            head += bytes(chunk) if len(head) < 4096 else b""
            total += len(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * PIECE
    with tarfile.open(fileobj=io.BytesIO(head)) as tar:
        assert [(info.name, info.size) for info in (tar.next(), tar.next()) if info] == [(".", 0), ("big", big.size)]
    # The root, a PAX header in two blocks, the header, the data, the end.
    assert total == 512 + 1024 + 512 + big.size + 1024


def test_a_file_that_shrinks_meanwhile_is_an_error(big: _Big) -> None:
    big.present = big.size - 1
    with pytest.raises(LayerInvalidError, match="was changed while it was read"):
        sum(map(len, iter_layer(big, plan_diff(big, empty()))))


def test_changes_may_be_chosen(base: NodeFileSystem) -> None:
    """A part of a plan is a layer, too: parents come along."""
    changes = [change for change in plan_diff(base, empty()) if change.path == b"d/c"]
    assert changes == [Change(ChangeKind.ADDED, b"d/c", base.lookup(base.lookup(ROOT, b"d"), b"c"))]
    assert [name for name, *_ in _members(b"".join(iter_layer(base, changes)))] == [".", "d", "d/c"]
