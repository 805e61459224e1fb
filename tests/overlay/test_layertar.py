"""The tar of a diff: order, parents, links, what is refused, and how much memory it takes."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import tarfile
import tracemalloc
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import LayerInvalidError
from pagepool.image import Kind, LayerSplitter, Limits, Member, Node
from pagepool.image.tarencode import encode_sparse
from pagepool.overlay import Change, ChangeKind, holes, iter_layer, plan_diff
from pagepool.overlay.holes import find_segments
from pagepool.overlay.layertar import PIECE
from pagepool.vfs import ROOT, Attributes, fail
from tests.overlay.layers import empty, make_layer
from tests.support.nodes import NodeFileSystem

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


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


def test_such_a_directory_of_the_image(base: NodeFileSystem) -> None:
    """It is there if only members in it name it. It cannot be on the way to a change, and its end cannot be told."""
    old, nodes = _copy(base)
    directory = old.new(Kind.DIRECTORY)
    old.put(nodes[b"d"], b".wh.c", directory)
    old.settle()
    now = old.copy()
    now.kept = max(old.nodes)
    now.put(dict(now.walk())[b"d/.wh.c"], b"new", now.new(Kind.REGULAR))
    now.settle()
    with pytest.raises(LayerInvalidError, match=r"'d/\.wh\.c': its name begins with \.wh\."):
        make_layer(now, old, now)
    with pytest.raises(LayerInvalidError, match=r"'d/\.wh\.c': was deleted, and no layer can say it"):
        make_layer(base, old)


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


class _Ignore:
    """Takes what is split, and keeps nothing."""

    def literal(self, data: memoryview) -> None: ...
    def begin(self, member: Member) -> None: ...
    def data(self, view: memoryview) -> None: ...
    def end(self) -> None: ...


class _Sparse(NodeFileSystem):
    """Files of which only some pieces are data, by offset; all else are holes. Counts the bytes that are read."""

    def __init__(self) -> None:
        super().__init__(Node(Kind.DIRECTORY, 0o755, children={}), {})
        self.pieces: dict[int, tuple[int, dict[int, bytes]]] = {}
        self.starts: dict[int, list[int]] = {}
        self.was_read = 0

    def add(self, name: bytes, size: int, pieces: Iterable[tuple[int, bytes]]) -> int:
        node = self.new(Kind.REGULAR, mode=0o600)
        self.put(self.root, name, node)
        self.settle()
        self.pieces[node.number] = size, dict(sorted(pieces))
        self.starts[node.number] = list(self.pieces[node.number][1])
        return node.number

    def attributes(self, ino: int) -> Attributes:
        found = super().attributes(ino)
        return found._replace(size=self.pieces[ino][0]) if ino in self.pieces else found

    def read(self, ino: int, offset: int, size: int) -> memoryview:
        self.was_read += size
        found = bytearray(size)
        for at, data in self.pieces[ino][1].items():
            for place in range(max(at, offset), min(at + len(data), offset + size)):
                found[place - offset] = data[place - at]
        return memoryview(found)

    def seek(self, ino: int, offset: int, whence: int) -> int:
        _, pieces = self.pieces[ino]
        starts = self.starts[ino]
        place = bisect_right(starts, offset) - 1
        end = starts[place] + len(pieces[starts[place]]) if place >= 0 else 0
        if whence == os.SEEK_HOLE:
            return max(offset, end)
        if offset < end:
            return offset
        return starts[place + 1] if place + 1 < len(starts) else fail(errno.ENXIO, ino)


_MIB, _TIB = 1 << 20, 1 << 40
_HOLEY = {
    "a log by user number": (b"lastlog", _TIB, [(0, b"a" * 4096), (100 * _MIB, b"b" * 292), (_TIB - 9, b"c" * 9)]),
    "a hole at both ends": ("größe".encode(), 20 * _MIB, [(8 * _MIB, b"x" * 1_000_000)]),
    "nothing but a hole": (b"h" * 200, _MIB, []),
    "small holes within": (b"dense", 8 * _MIB, [(0, b"a" * 4096), (8192, b"b" * 4096), (7 * _MIB, b"c" * 4096)]),
    "pieces of no whole block": (b"odd", 9 * _MIB, [(_MIB + 1, b"a" * 3), (3 * _MIB + 5, b"b" * 70_000)]),
}


@pytest.fixture
def small_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mebibyte of holes is worth it."""
    monkeypatch.setattr(holes, "WORTH", _MIB)


@pytest.mark.usefixtures("small_holes")
@pytest.mark.parametrize("name", _HOLEY)
def test_holes_are_not_written(name: str, tmp_path: Path) -> None:
    """What Python, GNU tar and the service's own splitter make of the member is what the file is."""
    path, size, pieces = _HOLEY[name]
    system = _Sparse()
    system.add(path, size, pieces)
    layer = make_layer(system, empty())
    stored = sum(len(data) for _, data in pieces)
    assert system.was_read <= stored + 8192 * len(pieces)
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        member = tar.getmembers()[1]
        assert (member.name, member.size, member.mode, member.issparse()) == (os.fsdecode(path), size, 0o600, True)
        file = tar.extractfile(member)
        assert file is not None
        for at, data in pieces:
            file.seek(at)
            assert file.read(len(data)) == data
    found: list[Member] = []
    splitter = LayerSplitter(_Ignore(), Limits(_TIB, _TIB), found.append)
    splitter.feed(layer)
    splitter.close()
    assert (splitter.problem, found[-1].path, found[-1].size) == ("", path, size)
    subprocess.run(["tar", "-x", "-C", tmp_path], input=layer, check=True)
    with (tmp_path / os.fsdecode(path)).open("rb") as out:
        status = os.fstat(out.fileno())
        assert status.st_size == size
        assert status.st_blocks * 512 <= stored + _MIB // 2
        for at, data in pieces:
            assert os.pread(out.fileno(), len(data), at) == data


@pytest.mark.parametrize("other", [b"x", b"y"])
def test_holes_are_not_compared(other: bytes) -> None:
    """A file of a terabyte with the metadata of another one: only their data is read."""
    now, base = _Sparse(), _Sparse()
    now.add(b"file", _TIB, [(100 * _MIB + 7, b"x" * 5000), (_TIB // 2, b"x" * 5000)])
    base.add(b"file", _TIB, [(100 * _MIB, bytes(7) + b"x" * 5000), (_TIB // 2, b"x" * 4999 + other)])
    assert bool(plan_diff(now, base)) == (other != b"x")
    assert now.was_read <= 4 * PIECE


@pytest.mark.usefixtures("small_holes")
@pytest.mark.parametrize(
    "pieces",
    [
        [(0, b"x" * 4096), (_MIB, b"y" * (2 * _MIB))],  # a hole of a little less than a mebibyte
        [(at, b"x" * 4096) for at in range(0, 3 * _MIB, 65536)],  # many that are small
    ],
)
def test_a_file_whose_holes_are_not_worth_it_is_plain(pieces: list[tuple[int, bytes]]) -> None:
    system = _Sparse()
    system.add(b"file", 3 * _MIB, pieces)
    with tarfile.open(fileobj=io.BytesIO(make_layer(system, empty()))) as tar:
        assert not tar.getmembers()[1].issparse()


def test_a_file_of_very_many_holes_has_a_map_that_runtimes_read() -> None:
    """Go reads maps of up to a mebibyte: of 40,000 holes the small ones are written, and no data is left out."""
    places = [number * 40 * _MIB + more for number in range(20_000) for more in (0, _MIB)]
    system = _Sparse()
    size = 20_000 * 40 * _MIB
    ino = system.add(b"file", size, [(at, b"x" * 4096) for at in places])
    segments = find_segments(system, ino, size)
    assert segments is not None
    assert len(encode_sparse(Member(b"f", b"f", Kind.REGULAR, 0, 0, 0, 0, size, 0), segments)) < _MIB
    assert sum(length for _, length in segments) < size // 2
    assert all(start + length < after for (start, length), (after, _) in pairwise(segments))
    starts = [start for start, _ in segments]
    held = [segments[bisect_right(starts, at) - 1] for at in places]
    assert all(start <= at and at + 4096 <= start + length for at, (start, length) in zip(places, held, strict=True))
