"""Splitting a layer: a stream of tar bytes becomes literal runs and file data.

Literal is everything that is not the stored data of a regular file: headers, bodies of extended headers,
sparse maps, padding, end blocks, whatever trails them, and whatever is not understood. Invariant, for any
input whatsoever: the literal bytes and the file data, in the order in which the sink was given them, are the
input byte for byte.

Nothing of the file data is copied: the sink gets slices of the chunk that was fed. One splitter serves one
stream and one thread. It holds at most one extended header (`Limits.max_header_size`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pagepool.errors import CorruptError
from pagepool.image.header import BLOCK
from pagepool.image.limits import Limits
from pagepool.image.member import Kind, Member
from pagepool.image.tar import TarMachine

# A literal run is handed on in pieces of at most this many bytes.
MAX_LITERAL = 1 << 20


class Sink(Protocol):
    """What takes the parts of a layer, in the order of the stream.

    Views are slices of the chunk that was fed, and as valid as that is. An exception from the sink passes through
    `LayerSplitter.feed`, and the splitter must not be used further.
    """

    def literal(self, data: memoryview, /) -> None:
        """Some bytes that are not file data; 1 to `MAX_LITERAL` of them. Runs may come in any number of pieces."""

    def begin(self, member: Member, /) -> None:
        """The stored data of a regular file follows.

        Only for a member whose logical `size` is not 0. A sparse file that is one hole has no `data` between
        `begin` and `end`.
        """

    def data(self, view: memoryview, /) -> None:
        """The next bytes of that data, never empty. Of a sparse member: the segments, packed."""

    def end(self) -> None:
        """The data of the member is complete.

        Also called when the stream ends within it: then fewer than `stored_size` bytes have come, and
        `LayerSplitter.problem` says so.
        """


class LayerSplitter:
    """Split the plain bytes of one layer.

    Args:
        sink: takes the parts.
        limits: what counts as a bomb.
        on_member: called with every good member of any kind, in order, before its data if it has any.
        on_file: given, it takes small ordinary files that lie whole in a chunk of bytes, in place of `Sink.literal`,
            `begin`, `data` and `end`: the literal run before its data, at most `MAX_LITERAL` bytes and ending in
            its header, whose size and checksum are zero-padded octal; and its data, 1 to `small` bytes. `on_member` is
            not called for those.
        small: see `on_file`.
    """

    def __init__(
        self,
        sink: Sink,
        limits: Limits | None = None,
        on_member: Callable[[Member], None] | None = None,
        on_file: Callable[[memoryview, memoryview], None] | None = None,
        small: int = 128 << 10,
    ) -> None:
        self._sink = sink
        self._machine = TarMachine(limits or Limits())
        self._on_member = on_member
        self._on_file = on_file
        self._small = small
        self._data = 0
        self._skip = 0
        self._in_member = False
        self._partial = bytearray()

    @property
    def problem(self) -> str:
        """Why this is not a layer that can be mounted, or "". Final once `close` has returned."""
        return self._machine.problem

    @property
    def members(self) -> int:
        """How many members of any kind there were, bad ones included."""
        return self._machine.members

    @property
    def logical_size(self) -> int:
        """Bytes of all regular files so far, holes included; hard links count nothing."""
        return self._machine.logical_size

    @property
    def in_member(self) -> bool:
        """Whether file data is due: between `Sink.begin` and `Sink.end`."""
        return self._in_member

    def feed(self, chunk: bytes | bytearray | memoryview) -> None:
        """Split the next bytes of the stream; any size, even none."""
        view = memoryview(chunk).cast("B")
        size = len(view)
        machine = self._machine
        quick = self._on_file if isinstance(chunk, bytes) else None
        position = start = 0  # [start, position) is a literal run that is not handed on yet
        while position < size:
            if self._data:
                taken = min(self._data, size - position)
                self._sink.data(view[position : position + taken])
                start = position = position + taken
                self._data -= taken
                if not self._data:
                    self._end()
            elif self._skip:
                taken = min(self._skip, size - position)
                self._skip -= taken
                position += taken
            else:
                if quick and not self._partial and machine.at_header:
                    start, position = self._pass_files(quick, view, start, position)
                end = position + machine.need
                if end <= size and not self._partial:
                    unit = view[position:end].tobytes()
                    position = end
                else:
                    position = self._gather(view, position)
                    if len(self._partial) < machine.need:
                        break
                    unit = bytes(self._partial)
                    self._partial.clear()
                member = machine.step(unit)
                self._skip = machine.skip
                if member is not None and self._begin(member, view, start, position):
                    start = position
        if start < size:
            self._literal(view[start:])

    def close(self) -> None:
        """Say that the stream has ended. Call it once."""
        self._machine.close(bytes(self._partial), self._data, self._skip)
        if self._in_member:
            self._end()

    def skip_data(self, size: int) -> None:
        """Pass over file data that is known to be there: how a recipe is read without its objects.

        Args:
            size: bytes of the data of the current member; nothing is handed to the sink for them.

        Raises:
            CorruptError: the stream does not expect so much file data here.
        """
        if size > self._data:
            raise CorruptError("recipe", "", f"{size} bytes of file data where its headers want {self._data}")
        self._data -= size
        if size and not self._data:
            self._end()

    def _pass_files(
        self, quick: Callable[[memoryview, memoryview], None], view: memoryview, start: int, position: int
    ) -> tuple[int, int]:
        """Hand on what is ordinary. Returns where the literal run after it starts, and where the next unit is."""
        pass_file, small = self._machine.pass_file, self._small
        chunk: bytes = view.obj  # type: ignore[assignment]
        last = len(chunk) - BLOCK
        while position <= last and (size := pass_file(chunk, position, small)) >= 0:
            position += BLOCK
            if size:
                if position - start > MAX_LITERAL:
                    self._literal(view[start : position - BLOCK])
                    start = position - BLOCK
                end = position + size
                quick(view[start:position], view[position:end])
                start = end
                position = end + -size % BLOCK
        return start, position

    def _gather(self, view: memoryview, position: int) -> int:
        """Keep what there is of a unit that does not lie in one chunk. Returns the position after it."""
        end = min(position + self._machine.need - len(self._partial), len(view))
        self._partial += view[position:end]
        return end

    def _begin(self, member: Member, view: memoryview, start: int, position: int) -> bool:
        """Announce a member; returns whether the literal run before its data was handed on."""
        if self._on_member is not None:
            self._on_member(member)
        if not member.size or member.kind is not Kind.REGULAR:
            return False
        self._literal(view[start:position])
        self._sink.begin(member)
        self._in_member = True
        self._data = self._machine.data
        if not self._data:
            self._end()
        return True

    def _end(self) -> None:
        self._in_member = False
        self._sink.end()

    def _literal(self, run: memoryview) -> None:
        if len(run) <= MAX_LITERAL:
            if run:
                self._sink.literal(run)
            return
        for start in range(0, len(run), MAX_LITERAL):
            self._sink.literal(run[start : start + MAX_LITERAL])
