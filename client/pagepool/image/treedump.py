"""A tree file as text, a line for each name, and back to the same bytes (docs/format/treedump.md).

For debugging and tests. Pure; what is read is checked line by line, and nothing of it is trusted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NoReturn

from pagepool.errors import ImageInvalidError
from pagepool.extents import EXTENT_SIZE
from pagepool.image.member import Kind
from pagepool.image.tree import Node, Tree
from pagepool.image.treeencode import encode_tree
from pagepool.image.treefile import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pagepool.image.treefile import TreeFile, TreeNode

HEAD: Final = "pagepool-tree 1"
_LETTERS: Final = {
    Kind.DIRECTORY: "d",
    Kind.REGULAR: "f",
    Kind.SYMLINK: "l",
    Kind.CHAR: "c",
    Kind.BLOCK: "b",
    Kind.FIFO: "p",
}
_KINDS: Final = {letter: kind for kind, letter in _LETTERS.items()}
_FIELDS: Final = {"d": 5, "f": 7, "l": 6, "c": 6, "b": 6, "p": 5}  # before the attributes
_NONE: Final = "-"
_ESCAPE: Final = re.compile(rb"[^!-<>-\[\]-~]")  # all but printing ASCII, and of that "=" and "\"
_ESCAPED: Final = re.compile(rb"\\x([0-9a-f]{2})|[!-\[\]-~]")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_MODE: Final = re.compile(r"[0-7]{4}")
_OWNERS: Final = re.compile(r"(0|[1-9][0-9]{0,9}):(0|[1-9][0-9]{0,9})")
_TIME: Final = re.compile(r"(-?[0-9]{1,19})\.([0-9]{9})")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_RUN: Final = re.compile(r"([1-9][0-9]{0,9})\*([0-9a-f]{64})")


def dump_tree(tree: TreeFile) -> Iterator[str]:
    """The lines of a tree, without their ends.

    Raises:
        CorruptError: the tree contradicts itself.
    """
    yield HEAD
    seen: dict[int, bytes] = {}
    waiting = [(b"/", ROOT)]
    while waiting:
        path, number = waiting.pop()
        if number in seen:
            yield f"{escape(path)} h {escape(seen[number])}"
            continue
        seen[number] = path
        yield " ".join((escape(path), *_describe(tree, tree.node(number))))
        prefix = path if path == b"/" else path + b"/"
        waiting += [(prefix + name, child) for name, child in sorted(tree.entries(number), reverse=True)]
    for index in range(tree.object_count):
        info = tree.object(index)
        if info.size > EXTENT_SIZE:
            yield " ".join((info.digest.hex(), *[f"{repeat}*{extent.hex()}" for repeat, extent in info.runs]))


def _describe(tree: TreeFile, node: TreeNode) -> Iterator[str]:
    seconds, ns = divmod(node.mtime_ns, 10**9)
    yield from (_LETTERS[node.kind], f"{node.mode:04o}", f"{node.uid}:{node.gid}", f"{seconds}.{ns:09d}")
    if node.kind is Kind.REGULAR:
        yield from (str(node.size), _NONE if node.object < 0 else tree.object(node.object).digest.hex())
    elif node.kind is Kind.SYMLINK:
        yield escape(node.target)
    elif node.kind in (Kind.CHAR, Kind.BLOCK):
        yield f"{node.devmajor}:{node.devminor}"
    for name, value in sorted(tree.xattrs(node.number).items()):
        yield f"{escape(name)}={escape(value)}"


def escape(text: bytes) -> str:
    """Any bytes as printing ASCII without spaces, ``=`` and backslash; none of them as a dash."""
    if text == b"-":
        return "\\x2d"
    return _ESCAPE.sub(lambda found: b"\\x%02x" % found[0][0], text).decode("ascii") or _NONE


def build_tree(lines: Iterable[str]) -> bytes:
    """The tree file that lines describe: of a dump the same bytes.

    Args:
        lines: with or without their ends.

    Raises:
        ImageInvalidError: they are no dump; names the line.
        LimitError: as `encode_tree`.
    """
    return _Parser().build(lines)


class _Parser:
    def __init__(self) -> None:
        self._line = 0
        self._nodes: dict[bytes, Node] = {}
        self._sizes: dict[bytes, int] = {}
        self._runs: dict[bytes, list[tuple[int, bytes]]] = {}

    def build(self, lines: Iterable[str]) -> bytes:
        for self._line, line in enumerate(lines, 1):
            fields = line.rstrip("\r\n").split(" ")
            if self._line == 1:
                if fields != HEAD.split(" "):
                    self._fail(f"it does not begin with {HEAD!r}")
            elif _DIGEST.fullmatch(fields[0]):
                self._add_object(fields)
            else:
                self._add(fields)
        if b"/" not in self._nodes:
            self._fail("there is no root")
        missing = [digest for digest, size in self._sizes.items() if size > EXTENT_SIZE and digest not in self._runs]
        if missing:
            self._fail(f"the extents of object {min(missing).hex()} are not there")
        return encode_tree(Tree(self._nodes[b"/"]), lambda digest, _: self._runs[digest])

    def _fail(self, reason: str) -> NoReturn:
        raise ImageInvalidError(f"line {self._line} of the dump", reason)

    def _add(self, fields: Sequence[str]) -> None:
        path = self._unescape(fields[0])
        if path in self._nodes:
            self._fail(f"{fields[0]} is there already")
        if len(fields) == 3 and fields[1] == "h":
            node = self._nodes.get(self._unescape(fields[2]))
            if node is None or node.children is not None:
                self._fail(f"it is a link to {fields[2]}, which is no file that came before")
        else:
            node = self._parse(fields[1:])
        if path != b"/":
            self._attach(path, node)
        elif node.children is None:
            self._fail("the root is no directory")
        self._nodes[path] = node

    def _attach(self, path: bytes, node: Node) -> None:
        parent_path, slash, name = path.rpartition(b"/")
        parent = self._nodes.get(parent_path or b"/")
        if not slash or parent is None or parent.children is None:
            self._fail("the directory that it is in did not come before")
        if name in (b"", b".", b"..") or b"\0" in name:
            self._fail("it has no name that a file can have")
        parent.children[name] = node

    def _parse(self, fields: Sequence[str]) -> Node:
        count = _FIELDS.get(fields[0] if fields else "", 0) - 1
        if count < 0 or len(fields) < count:
            self._fail("it is of no known kind, or too short")
        mode, owners, time = _MODE.fullmatch(fields[1]), _OWNERS.fullmatch(fields[2]), _TIME.fullmatch(fields[3])
        if not mode or not owners or not time:
            self._fail("mode, owners or time are none")
        kind = _KINDS[fields[0]]
        node = Node(kind, int(mode[0], 8), self._u32(owners[1]), self._u32(owners[2]))
        node.mtime_ns = int(time[1]) * 10**9 + int(time[2])
        node.children = {} if kind is Kind.DIRECTORY else None
        if kind is Kind.REGULAR:
            self._set_content(node, fields[4], fields[5])
        elif kind is Kind.SYMLINK:
            node.target = self._unescape(fields[4])
            node.size = len(node.target)
        elif kind in (Kind.CHAR, Kind.BLOCK):
            device = _OWNERS.fullmatch(fields[4])
            if not device:
                self._fail(f"{fields[4]!r} is no device")
            node.devmajor, node.devminor = self._u32(device[1]), self._u32(device[2])
        node.xattrs = self._parse_xattrs(fields[count:])
        return node

    def _set_content(self, node: Node, size: str, digest: str) -> None:
        if not _NUMBER.fullmatch(size) or bool(int(size)) != bool(_DIGEST.fullmatch(digest)):
            self._fail("its size is none, or does not go with its content")
        node.size = int(size)
        if node.size:
            node.object = bytes.fromhex(digest)
            if self._sizes.setdefault(node.object, node.size) != node.size:
                self._fail(f"object {digest} had another size before")
        elif digest != _NONE:
            self._fail("an empty file has no object")

    def _parse_xattrs(self, fields: Sequence[str]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for field in fields:
            name, equals, value = field.partition("=")
            key = self._unescape(name)
            if not equals or not key or key in found:
                self._fail(f"{field!r} is no attribute, or there twice")
            found[key] = self._unescape(value)
        return found

    def _add_object(self, fields: Sequence[str]) -> None:
        digest = bytes.fromhex(fields[0])
        runs = [_RUN.fullmatch(field) for field in fields[1:]]
        found = [(int(run[1]), bytes.fromhex(run[2])) for run in runs if run]
        size = self._sizes.get(digest, 0)
        if len(found) != len(runs) or digest in self._runs:
            self._fail("it is not a list of extents, or there twice")
        if size <= EXTENT_SIZE or sum(repeat for repeat, _ in found) != -(-size // EXTENT_SIZE):
            self._fail("no file has such content, or the extents contradict its size")
        self._runs[digest] = found

    def _u32(self, text: str) -> int:
        value = int(text)
        if value >= 1 << 32:
            self._fail(f"{text} is too large")
        return value

    def _unescape(self, text: str) -> bytes:
        if text == _NONE:
            return b""
        raw = text.encode("utf-8", "replace")
        parts = list(_ESCAPED.finditer(raw))
        if sum(len(part[0]) for part in parts) != len(raw) or not raw:
            self._fail(f"{text[:80]!r} is not escaped as it should be")
        return b"".join(bytes.fromhex(part[1].decode()) if part[1] else part[0] for part in parts)
