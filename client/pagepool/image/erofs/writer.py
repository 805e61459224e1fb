"""Writes the EROFS image of a tree: all of its metadata, and the contents of small files (docs/format/erofs.md).

Files above `inline_max` have no data in it: overlayfs takes that from a data layer, by the object's digest. The same
tree and limit become the same bytes. Takes about 10 µs for each node and, while it runs, memory for the whole image;
blocks for as long as the contents of small files take to come.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, TypeAlias

from pagepool.errors import CorruptError, LimitError
from pagepool.image import treescan
from pagepool.image.erofs import format as erofs
from pagepool.image.erofs.directories import encode_block, split_blocks
from pagepool.image.erofs.xattrs import XattrTable
from pagepool.image.treefile import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from typing_extensions import Buffer

    from pagepool.image.treefile import TreeFile

ReadObjects: TypeAlias = "Callable[[Sequence[int]], Iterable[tuple[int, Buffer]]]"
"""Contents of objects of the tree, by index, each once and in any order."""

INLINE_MAX: Final = 64
"""Bytes of the largest file whose content is in the image: chosen by measurement, see docs/benchmarks.md."""

# More than half of a block at the end of a file gets a block of its own: what is inlined has to lie within one block
# with its inode, and to make place for that would cost as much.
_LARGEST_TAIL: Final = erofs.BLOCK // 2
_LONGEST_TARGET: Final = 4095
_FORMATS: Final = {
    treescan.DIRECTORY: 0o040000,
    treescan.REGULAR: 0o100000,
    treescan.SYMLINK: 0o120000,
    treescan.CHAR: 0o020000,
    treescan.BLOCK: 0o060000,
    treescan.FIFO: 0o010000,
}
_TYPES: Final = (
    erofs.DIRECTORY_TYPE,
    erofs.REGULAR_TYPE,
    erofs.SYMLINK_TYPE,
    erofs.CHAR_TYPE,
    erofs.BLOCK_TYPE,
    erofs.FIFO_TYPE,
)


@dataclass(frozen=True, slots=True)
class ErofsInfo:
    """What an image has in it.

    Args:
        size: bytes of it.
        inlined: regular files, each once, whose content it has.
        inlined_bytes: their sizes together.
        nodes: inodes.
    """

    size: int
    inlined: int
    inlined_bytes: int
    nodes: int


def write_erofs(tree: TreeFile, read: ReadObjects, out: BinaryIO, *, inline_max: int = INLINE_MAX) -> ErofsInfo:
    """Write the image of a tree.

    Args:
        tree: its digest was verified.
        read: asked once, for all objects of at most `inline_max` bytes; it verifies what it gives.
        out: gets the image from where it stands; nothing is written unless all of it could be made.
        inline_max: the size of the largest file whose content goes into the image.

    Raises:
        CorruptError: the tree contradicts itself, or `read` left out an object or gave one of another size.
        LimitError: something is more than EROFS can say (a symlink's target of 4 KiB, 64 KiB of one xattr).
        whatever `read` and `out` raise.
    """
    layout = _Layout(tree, inline_max)
    image = layout.assemble()
    layout.fill(image, read)
    out.write(image)
    return ErofsInfo(len(image), layout.inlined, layout.inlined_bytes, layout.nodes)


class _Directory(NamedTuple):
    """Where a directory goes: blocks from `block` on, and at `tail_at` what is left (0 if nothing is)."""

    entries: list[tuple[bytes, int]]
    ends: list[int]
    block: int
    tail_at: int


class _Layout:
    """Places every inode; notes what has to be filled in once all have their places."""

    def __init__(self, tree: TreeFile, inline_max: int) -> None:
        self._scan = treescan.TreeScan(tree)
        self._objects = self._scan.objects()
        self._inline_max = inline_max
        self._uuid = tree.digest[:16]
        self._survey(tree)
        self._meta = bytearray(erofs.SUPER_AT + erofs.SUPER.size)
        self._blocks = 0
        self._inodes = array("Q", bytes(8 * (self._scan.node_count + 1)))
        self._types = bytearray(self._scan.node_count + 1)
        self._directories: list[_Directory] = []
        self._contents: dict[int, list[tuple[int, int]]] = {}  # object -> (block, where its tail is)
        self._targets: list[tuple[int, bytes]] = []  # (block, target)
        self._late: list[tuple[int, int]] = []  # (where in an inode its block is named, block)
        self.inlined = self.inlined_bytes = self.nodes = 0
        for number, record in enumerate(self._scan.nodes(), 1):
            if number not in self._whiteouts:
                self._place(number, record)

    def _survey(self, tree: TreeFile) -> None:
        """Count what several inodes have in common: attributes, objects, and the time that most have."""
        times: Counter[tuple[int, int]] = Counter()
        sets: Counter[tuple[int, int]] = Counter()
        objects: Counter[bytes] = Counter()
        # Overlayfs takes such a device for a whiteout: what is there for nobody is left out.
        self._whiteouts: set[int] = set()
        owners: dict[int, int] = {}  # set of attributes -> a node that has it
        for number, record in enumerate(self._scan.nodes(), 1):
            if record.kind == treescan.CHAR and not erofs.encode_device(record.first, record.second):
                self._whiteouts.add(number)
                continue
            times[record.seconds, record.ns] += 1
            if record.xattrs:
                sets[record.xattrs, record.kind] += 1
                owners.setdefault(record.xattrs, number)
            if record.kind == treescan.REGULAR and record.first:
                digest, _ = self._object(number, record)
                if record.size > self._inline_max:
                    objects[digest] += 1
        self._built = min(times, key=lambda time: (-times[time], time))

        def read(place: int) -> Mapping[bytes, bytes]:
            return tree.xattrs(owners[place])

        self._xattrs = XattrTable(sets, read, objects)

    def _object(self, number: int, record: treescan.NodeRecord) -> tuple[bytes, int]:
        place = record.first - 1
        found = self._objects[place] if place < len(self._objects) else (b"", -1)
        if found[1] != record.size:
            raise CorruptError(
                "tree", "", f"node {number} has {record.size} bytes, and its content is not there or of another size"
            )
        return found

    def _place(self, number: int, record: treescan.NodeRecord) -> None:
        """Append an inode with what belongs to it."""
        code = record.kind
        self._types[number] = _TYPES[code]
        if code == treescan.REGULAR:
            if record.size > self._inline_max:
                self._place_chunks(number, record)
            else:
                self._place_small(number, record)
        elif code == treescan.DIRECTORY:
            self._place_directory(number, record)
        elif code == treescan.SYMLINK:
            self._place_symlink(number, record)
        else:
            device = erofs.encode_device(record.first, record.second) if code != treescan.FIFO else 0
            self._append(number, record, erofs.PLAIN, 0, device, self._xattrs.of(record.xattrs, record.kind))

    def _place_chunks(self, number: int, record: treescan.NodeRecord) -> None:
        """A file whose data is in the pool: one hole."""
        digest, size = self._object(number, record)
        bits = min(max((size - 1).bit_length() - erofs.BLOCK_BITS, 0), erofs.MOST_CHUNK_BITS)
        count = -(-size >> (bits + erofs.BLOCK_BITS))
        if count > _LARGEST_TAIL // 4:
            raise LimitError("file", size, _LARGEST_TAIL // 4 << (bits + erofs.BLOCK_BITS))
        tail = erofs.NO_BLOCK * count
        self._append(number, record, erofs.CHUNKS, size, bits, self._xattrs.of_data(record.xattrs, digest), tail)

    def _place_small(self, number: int, record: treescan.NodeRecord) -> None:
        """A file whose content is in the image; it comes later."""
        size, xattrs = record.size, self._xattrs.of(record.xattrs, record.kind)
        if not size:
            self._append(number, record, erofs.PLAIN, 0, 0, xattrs)
            return
        self._object(number, record)
        block, tail_at = self._append_data(number, record, size, xattrs, bytes(size % erofs.BLOCK))
        self._contents.setdefault(record.first - 1, []).append((block, tail_at))
        self.inlined += 1
        self.inlined_bytes += size

    def _place_directory(self, number: int, record: treescan.NodeRecord) -> None:
        entries = self._scan.entries(number, record.first, record.second)
        if self._whiteouts:
            entries = [entry for entry in entries if entry[1] not in self._whiteouts]
        parent = record.parent or ROOT
        if parent > self._scan.node_count:
            raise CorruptError("tree", "", f"node {number} is said to be in {parent}, which is not there")
        entries += [(b".", number), (b"..", parent)]
        entries.sort()
        longest = max(len(name) for name, _ in entries)
        if longest > erofs.LONGEST_NAME:
            raise LimitError("name", longest, erofs.LONGEST_NAME)
        self._directories.append(_Directory(entries, *self._place_entries(number, record, entries)))

    def _place_entries(
        self, number: int, record: treescan.NodeRecord, entries: list[tuple[bytes, int]]
    ) -> tuple[list[int], int, int]:
        ends, used = split_blocks(entries)
        size = (len(ends) - 1) * erofs.BLOCK + used
        block, tail_at = self._append_data(
            number, record, size, self._xattrs.of(record.xattrs, record.kind), bytes(used % erofs.BLOCK)
        )
        return ends, block, tail_at

    def _place_symlink(self, number: int, record: treescan.NodeRecord) -> None:
        target = self._scan.string(record.first, record.second)
        if len(target) > _LONGEST_TARGET:
            raise LimitError("target of a symlink", len(target), _LONGEST_TARGET)
        xattrs = self._xattrs.of(record.xattrs, record.kind)
        block, tail_at = self._append_data(number, record, len(target), xattrs, target)
        if not tail_at:
            self._targets.append((block, target))

    def _append_data(
        self, number: int, record: treescan.NodeRecord, size: int, xattrs: bytes, tail: bytes
    ) -> tuple[int, int]:
        """Append an inode that has data. Returns its first block, and where its tail is, 0 if that is in a block."""
        if tail and len(tail) <= _LARGEST_TAIL and erofs.EXTENDED.size + len(xattrs) + len(tail) <= erofs.BLOCK:
            blocks, layout = size // erofs.BLOCK, erofs.INLINE
        else:
            blocks, layout, tail = -(-size // erofs.BLOCK), erofs.PLAIN, b""
        first = self._blocks
        self._blocks += blocks
        end = self._append(number, record, layout, size, 0, xattrs, tail, first if blocks else -1)
        return first, end - len(tail) if tail else 0

    def _append(
        self,
        number: int,
        record: treescan.NodeRecord,
        layout: int,
        size: int,
        detail: int,
        xattrs: bytes,
        tail: bytes = b"",
        block: int = -1,
    ) -> int:
        """Append an inode. Returns where its tail ends."""
        code, mode, links, uid, gid, seconds, ns = record[:7]
        mode |= _FORMATS[code]
        count = (len(xattrs) - erofs.XATTR_HEAD.size) // 4 + 1 if xattrs else 0
        small = erofs.MOST_U16
        if (seconds, ns) == self._built and uid <= small and gid <= small and links <= small and size < 1 << 32:
            core = erofs.COMPACT.pack(layout << 1, count, mode, links, size, detail, number, uid, gid)
        else:
            core = erofs.EXTENDED.pack(layout << 1 | 1, count, mode, size, detail, number, uid, gid, seconds, ns, links)
        meta = self._meta
        meta += bytes(-len(meta) % erofs.SLOT)
        # An inode lies within one block with all that belongs to it, if that can be; else its core does.
        whole = len(core) + len(xattrs) + len(tail)
        room = -len(meta) % erofs.BLOCK
        if (whole if whole <= erofs.BLOCK else len(core)) > room:
            meta += bytes(room)
        self._inodes[number] = len(meta) // erofs.SLOT
        if block >= 0:
            self._late.append((len(meta) + erofs.NUMBER_AT - erofs.U32.size, block))
        meta += core
        meta += xattrs
        meta += tail
        self.nodes += 1
        return len(meta)

    def assemble(self) -> bytearray:
        """The image, but for the contents of files. Called once."""
        image, self._meta = self._meta, bytearray()
        image += bytes(-len(image) % erofs.BLOCK)
        xattr_block = len(image) // erofs.BLOCK
        image += self._xattrs.shared
        image += bytes(-len(image) % erofs.BLOCK)
        start = len(image) // erofs.BLOCK
        total = start + self._blocks
        if total >= erofs.MOST_U32 // (erofs.BLOCK // erofs.SLOT):
            raise LimitError("blocks of an image", total, erofs.MOST_U32 // (erofs.BLOCK // erofs.SLOT))
        image += bytes(self._blocks * erofs.BLOCK)
        self._data_at = start * erofs.BLOCK
        for at, block in self._late:
            erofs.U32.pack_into(image, at, start + block)
        for block, target in self._targets:
            self._put(image, block, target)
        for directory in self._directories:
            self._put_directory(image, directory)
        head = erofs.encode_super(self._inodes[ROOT], self.nodes, self._built, total, xattr_block, self._uuid)
        image[erofs.SUPER_AT : erofs.SUPER_AT + len(head)] = head
        return image

    def _put(self, image: bytearray, block: int, data: bytes | memoryview) -> None:
        at = self._data_at + block * erofs.BLOCK
        image[at : at + len(data)] = data

    def _put_directory(self, image: bytearray, directory: _Directory) -> None:
        start = 0
        last = len(directory.ends) - 1
        for place, end in enumerate(directory.ends):
            data = encode_block(directory.entries[start:end], self._inodes, self._types)
            if place == last and directory.tail_at:
                image[directory.tail_at : directory.tail_at + len(data)] = data
            else:
                self._put(image, directory.block + place, data)
            start = end

    def fill(self, image: bytearray, read: ReadObjects) -> None:
        """Put the contents of files in, and the check sum.

        Raises:
            CorruptError: one did not come, or another than was asked for.
        """
        waiting = dict(self._contents)
        for index, content in read(sorted(waiting)) if waiting else ():
            data = memoryview(content).cast("B")
            if index not in waiting:
                raise CorruptError("tree", "", f"object {index} came, and was not asked for")
            digest, size = self._objects[index]
            if len(data) != size:
                raise CorruptError("object", digest.hex(), f"it came with {len(data)} bytes, not {size}")
            for block, tail_at in waiting.pop(index):
                whole = size - size % erofs.BLOCK if tail_at else size
                self._put(image, block, data[:whole])
                if tail_at:
                    image[tail_at : tail_at + size - whole] = data[whole:]
        if waiting:
            digest, _ = self._objects[min(waiting)]
            raise CorruptError("object", digest.hex(), "its content did not come")
        checked = memoryview(image)[erofs.SUPER_AT : erofs.BLOCK]
        erofs.U32.pack_into(image, erofs.SUPER_AT + 4, erofs.crc32c(checked))
