"""Random operations on a file system that can be changed, by the interface that mounts and paths use."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st

from pagepool.image import Kind
from pagepool.vfs import RENAME_EXCHANGE, ROOT, Changes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pagepool.vfs import WritableFileSystem

    Operation = tuple[str, int, int, int]

_NAMES = (b"a", b"b", b"c", b"d\xff")
_KINDS = (Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK, Kind.CHAR, Kind.FIFO, Kind.SOCKET)
_NUMBERS = st.integers(0, 255)


def operations(largest: int) -> st.SearchStrategy[list[Operation]]:
    """Operations, at most so many; the numbers choose what they are about."""
    one = st.tuples(st.sampled_from(sorted(_OPERATIONS)), _NUMBERS, _NUMBERS, _NUMBERS)
    return st.lists(one, min_size=1, max_size=largest)


def run(system: WritableFileSystem, wanted: Iterable[Operation]) -> None:
    """Run operations; what the file system refuses is passed over."""
    for operation in wanted:
        with suppress(OSError):
            _run(system, *operation)


class _About(NamedTuple):
    """What an operation is about: some inode, some name that is there, some that may be; and its numbers."""

    ino: int
    source: tuple[int, bytes]
    target: tuple[int, bytes]
    numbers: tuple[int, int, int]


def _run(system: WritableFileSystem, what: str, first: int, second: int, third: int) -> None:
    nodes, places = _look(system)
    directories = [node for node in nodes if system.attributes(node).kind is Kind.DIRECTORY]
    target = directories[second % len(directories)], _NAMES[third % len(_NAMES)]
    source = places[first % len(places)] if places else target
    if what == "exchange" and places:
        target = places[second % len(places)]
    _OPERATIONS[what](system, _About(nodes[first % len(nodes)], source, target, (first, second, third)))


def _create(system: WritableFileSystem, about: _About) -> None:
    first, second, third = about.numbers
    target, owner = b"x%d" % first, (first, second)
    kind = _KINDS[first % len(_KINDS)]
    system.create(*about.target, kind, 0o640 + third % 8, *owner, target=target, device=(1, 3))


def _write(system: WritableFileSystem, about: _About) -> None:
    system.write(about.ino, about.numbers[1] * 100 % 9000, b"%d" % about.numbers[2] * 50)


def _set(system: WritableFileSystem, about: _About) -> None:
    system.set_attributes(about.ino, Changes(mode=about.numbers[1] * 16 % 0o7777, uid=about.numbers[2]))


def _date(system: WritableFileSystem, about: _About) -> None:
    system.set_attributes(about.ino, Changes(mtime_ns=(about.numbers[1] - 100) * 10**9 + about.numbers[2]))


def _set_xattr(system: WritableFileSystem, about: _About) -> None:
    if system.attributes(about.ino).kind in (Kind.REGULAR, Kind.DIRECTORY):  # Linux has none of users' elsewhere
        system.set_xattr(about.ino, b"user.%d" % (about.numbers[1] % 3), b"v%d" % about.numbers[2])


def _remove(system: WritableFileSystem, parent: int, name: bytes) -> None:
    ino = system.lookup(parent, name)
    if system.attributes(ino).kind is not Kind.DIRECTORY:
        system.unlink(parent, name)
        return
    for entry in list(system.entries(ino)):
        _remove(system, ino, entry.name)
    system.rmdir(parent, name)


def _look(system: WritableFileSystem) -> tuple[list[int], list[tuple[int, bytes]]]:
    """Every inode once, and every name with its directory, in an order that does not depend on chance."""
    nodes, places = [ROOT], []
    for ino in nodes:
        if system.attributes(ino).kind is Kind.DIRECTORY:
            for entry in system.entries(ino):
                places.append((ino, entry.name))
                if entry.ino not in nodes:
                    nodes.append(entry.ino)
    return nodes, places


_OPERATIONS: dict[str, Callable[[WritableFileSystem, _About], object]] = {
    "create": _create,
    "write": _write,
    "truncate": lambda system, about: system.set_attributes(about.ino, Changes(size=about.numbers[1] * 50)),
    "punch": lambda system, about: system.allocate(about.ino, about.numbers[1] * 16, 5000, 3),
    "attributes": _set,
    "time": _date,
    "xattr": _set_xattr,
    "no xattr": lambda system, about: system.remove_xattr(about.ino, b"user.%d" % (about.numbers[1] % 3)),
    "link": lambda system, about: system.link(about.ino, *about.target),
    "unlink": lambda system, about: system.unlink(*about.source),
    "rmdir": lambda system, about: system.rmdir(*about.source),
    "rmtree": lambda system, about: _remove(system, *about.source),
    "rename": lambda system, about: system.rename(*about.source, *about.target),
    "exchange": lambda system, about: system.rename(*about.source, *about.target, RENAME_EXCHANGE),
}
