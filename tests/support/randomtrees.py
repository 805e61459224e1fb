"""Random changes of a file system in memory, of every kind that there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st

from pagepool.image import Kind, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.support.nodes import NodeFileSystem

_KINDS = (Kind.REGULAR, Kind.DIRECTORY, Kind.REGULAR, Kind.SYMLINK, Kind.CHAR, Kind.BLOCK, Kind.FIFO)
_DATA = (b"", b"one", b"two", b"three" * 300)
# Few, so that they meet; of every kind that is hard to write into a tar.
_NAMES = (b"a", b"b", b"c", b"d\xff", b"\xc3\xa9" * 60, b"n" * 255)
_TIMES = (0, 1_700_000_000_000_000_000, -5_250_000_000, 1_700_000_000_123_456_789, -1)
_OWNERS = (0, 1000, 2**31, 2**32 - 2)
_MODES = (0o644, 0o755, 0o4755, 0o1777, 0)
_XATTRS: tuple[dict[bytes, bytes], ...] = ({}, {b"user.a": b"1"}, {b"user.b": b"\0\xff\n", b"user.a": b"x" * 300})


class Step(NamedTuple):
    """One change; the numbers choose what it is about."""

    name: str
    first: int
    second: int
    third: int


def populate(system: NodeFileSystem) -> None:
    """Directories in directories, files with names here and there: something for changes to meet."""
    directories = [system.root]
    for parent, name in ((0, b"a"), (0, b"b"), (1, b"a"), (1, b"b"), (2, b"a"), (3, b"c")):
        directories.append(system.new(Kind.DIRECTORY))
        system.put(directories[parent], name, directories[-1])
    for at, names in enumerate((((1, b"c"), (2, b"c")), ((3, b"a"), (4, b"a"), (5, b"a")), ((6, b"a"),), ((5, b"b"),))):
        node = system.new(Kind.REGULAR, _DATA[at])
        for directory, name in names:
            system.put(directories[directory], name, node)
    system.settle()


def steps(largest: int) -> st.SearchStrategy[list[Step]]:
    """Changes, at most so many."""
    number = st.integers(0, 255)
    step = st.builds(Step, st.sampled_from(sorted(_STEPS)), number, number, number)
    return st.lists(step, min_size=1, max_size=largest)


def apply(system: NodeFileSystem, changes: Iterable[Step]) -> None:
    """Apply changes; those that are not possible are passed over."""
    for change in changes:
        _STEPS[change.name](system, change)
    system.settle()


def _create(system: NodeFileSystem, step: Step) -> None:
    directory, name = _place(system, step.first, step.second)
    if name in _children(directory):
        return
    kind = _KINDS[step.third % len(_KINDS)]
    device = {"devmajor": 5, "devminor": step.third} if kind in (Kind.CHAR, Kind.BLOCK) else {}
    node = system.new(kind, _DATA[step.third % 3], **device)
    _dress(node, step.third)
    system.put(directory, name, node)


def _write(system: NodeFileSystem, step: Step) -> None:
    node = _node(system, step.first)
    if node.kind is Kind.REGULAR:
        system.write(node, _DATA[step.second % len(_DATA)])
        if step.third % 2:
            node.mtime_ns = _TIMES[step.third % len(_TIMES)]


def _change(system: NodeFileSystem, step: Step) -> None:
    node = _node(system, step.first)
    _dress(node, step.second + step.third)
    system.touch(node)


def _link(system: NodeFileSystem, step: Step) -> None:
    node = _node(system, step.first)
    directory, name = _place(system, step.second, step.third)
    if node.children is None and name not in _children(directory):
        system.put(directory, name, node)


def _remove(system: NodeFileSystem, step: Step) -> None:
    found = _entry(system, step.first)
    if found is not None and (node := system.remove(*found)) is not None:
        system.forget(node)


def _rename(system: NodeFileSystem, step: Step) -> None:
    found = _entry(system, step.first)
    if found is None:
        return
    node = _children(found[0])[found[1]]
    directory, name = _place(system, step.second, step.third)
    old = _children(directory).get(name)
    if directory in _below(node) or old is node or (old is not None and found[0] in _below(old)):
        return
    if old is not None:
        system.remove(directory, name)
        system.forget(old)
    system.remove(*found)
    system.put(directory, name, node)


def _exchange(system: NodeFileSystem, step: Step) -> None:
    one, other = _entry(system, step.first), _entry(system, step.second)
    if one is None or other is None:
        return
    first, second = _children(one[0])[one[1]], _children(other[0])[other[1]]
    if first is second or one[0] in _below(second) or other[0] in _below(first):
        return
    system.put(*one, second)
    system.put(*other, first)


_STEPS: dict[str, Callable[[NodeFileSystem, Step], None]] = {
    "create": _create,
    "write": _write,
    "change": _change,
    "link": _link,
    "remove": _remove,
    "rename": _rename,
    "exchange": _exchange,
}


def _dress(node: Node, seed: int) -> None:
    """Give a node other metadata."""
    node.mode = 0o777 if node.kind is Kind.SYMLINK else _MODES[seed % len(_MODES)]
    node.uid, node.gid = _OWNERS[seed % len(_OWNERS)], _OWNERS[seed // 2 % len(_OWNERS)]
    node.mtime_ns = _TIMES[seed // 3 % len(_TIMES)]
    if node.kind in (Kind.REGULAR, Kind.DIRECTORY):
        node.xattrs = _XATTRS[seed % len(_XATTRS)]


def _children(directory: Node) -> dict[bytes, Node]:
    assert directory.children is not None
    return directory.children


def _node(system: NodeFileSystem, number: int) -> Node:
    found = list(system.walk())
    return found[number % len(found)][1]


def _place(system: NodeFileSystem, number: int, name: int) -> tuple[Node, bytes]:
    found = [node for _, node in system.walk() if node.children is not None]
    return found[number % len(found)], _NAMES[name % len(_NAMES)]


def _entry(system: NodeFileSystem, number: int) -> tuple[Node, bytes] | None:
    directories = [node for _, node in system.walk() if node.children]
    found = [(directory, name) for directory in directories for name in _children(directory)]
    return found[number % len(found)] if found else None


def _below(node: Node) -> set[Node]:
    found = {node}
    for child in (node.children or {}).values():
        found |= _below(child)
    return found
