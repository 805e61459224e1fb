"""The tar machine: from units of literal bytes to members.

`TarMachine` sees only what is not file data: header blocks, bodies of extended headers, sparse maps. It says
how many bytes the next unit has, and after each how much file data and how much to pass over follows. Whoever
drives it (`layer.LayerSplitter`) owns the bytes. The same machine reads a stream of plain bytes and a recipe,
where the file data is absent.

It never raises for what the bytes say. The first thing wrong becomes `problem`; then it goes on where the
stream can still be followed, and otherwise counts everything further as literal. Members that are wrong are
not returned: their data is passed over as literal.

Dialects: `header` (blocks), `pax` (records), `sparse` (maps). Choices where they disagree, all as Go's
archive/tar has them, because the container runtimes read layers with it:

- Links, devices, directories and FIFOs have no data, whatever their size says.
- Only a type of NUL with a name that ends in ``/`` is a directory; type ``0`` is a file.
- A global extended header (``g``) changes nothing, and forgets an extended header before it.
- A GNU long name wins over a PAX path.
- One zero block at the end is enough; data after one lone zero block is an error; anything after two is not
read.

Unlike Go: zeros that nothing comes before, and that something else follows soon, are no empty tar. EROFS, ext4,
ISO 9660 and btrfs leave the first bytes of a disk free.

Beyond Go, as POSIX and GNU tar: type ``7`` and unknown types are regular files, ``X`` (Solaris) is ``x``,
``D`` is a directory with data, ``V`` (volume label) and ``N`` are passed over.
"""

from __future__ import annotations

from collections.abc import Callable

from pagepool.errors import LayerInvalidError
from pagepool.image import sparse
from pagepool.image.header import BLOCK, ZERO_BLOCK, Header, parse_header, read_ordinary
from pagepool.image.limits import Limits
from pagepool.image.member import NO_XATTRS, Kind, Member, check_member, normalise_path, show_name
from pagepool.image.pax import apply_records, parse_integer, parse_records, parse_xattrs

# More than any stream has.
ENDLESS = 1 << 80

_KINDS = {
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
    b"D": Kind.DIRECTORY,
}
_REGULAR = Kind.REGULAR
_LINKS = (Kind.HARDLINK, Kind.SYMLINK)
_DEVICES = (Kind.CHAR, Kind.BLOCK)
_WITH_DATA = b"D"
_EXTENSIONS = b"xXLK"
_PASSED_OVER = b"gVN"
_NOT_A_TAR = "not a tar: it does not begin with a header"
_A_DISK = "not a tar: it begins with zeros, as images of disks do, and goes on with something else"
# What is looked at behind the zeros at the start: the magic of btrfs is at 64 KiB.
_LOOKED_AT = 65 << 10


class TarMachine:
    """Reads the units of one tar. Not thread-safe.

    Attributes:
        need: bytes of the next unit. `data` and `skip` bytes come before it.
        data: after `step` returned a regular member: bytes of file data that follow.
        skip: after `step`: bytes that follow the data and are no unit; the last `pad` of them may be missing
            at the end of the stream. `ENDLESS` once nothing more is understood.
        pad: see `skip`.
        problem: why the layer cannot be mounted, or "".
        members: how many members were seen.
        logical_size: bytes of all regular files so far, holes included.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.need = BLOCK
        self.data = self.skip = self.pad = 0
        self.problem = ""
        self.members = 0
        self.logical_size = 0
        self.step: Callable[[bytes], Member | None] = self._read_header
        """Read the next unit, of exactly `need` bytes; returns the member that it completes but for its data."""
        self._extension = (b"", 0)
        self._last = b""
        self._map: sparse.PendingMap | None = None
        self._extended = False
        self._records: dict[bytes, bytes] = {}
        self._long_name = self._long_link = b""

    def close(self, partial: bytes, data: int, skip: int) -> None:
        """Say that the stream has ended.

        Args:
            partial: what there was of the next unit.
            data: bytes of file data that are missing.
            skip: bytes to pass over that are missing.
        """
        if self.step == self._end:
            return
        if self.step == self._read_start:
            self._read_start(partial)
            return
        if data or skip > self.pad or self.step in (self._read_gnu_map, self._read_data_map):
            self._report(f"member {_show(self._last)} says it holds more bytes than the stream has (truncated)")
        elif self.step == self._read_extension:
            if len(partial) < self._extension[1]:
                self._report("an extended header is longer than the stream (truncated)")
        elif partial:
            is_tar = self._last or not any(partial)
            self._report("the stream ends within a block (truncated)" if is_tar else _NOT_A_TAR)

    # -- header blocks

    @property
    def at_header(self) -> bool:
        """Whether the next unit is a header block that nothing before it says anything about."""
        return self.step == self._read_header and not self._extended

    def pass_file(self, chunk: bytes, position: int, most: int) -> int:
        """Pass over a whole ordinary file; `step` would do the same in twice the time. Only where `at_header`.

        Args:
            chunk: bytes of the stream.
            position: of the next unit in it, which is there.
            most: bytes of the largest file that is wanted.

        Returns:
            bytes of the file, whose data and padding are in the chunk, too. Or -1, and nothing was done.
        """
        found = read_ordinary(chunk, position)
        if found is None:
            return -1
        name, size = found
        limits = self._limits
        if size > most or position + BLOCK + size + -size % BLOCK > len(chunk) or size > limits.max_member_size:
            return -1
        if self.members >= limits.max_members or self.logical_size + size > limits.max_layer_size:
            return -1
        self._last = name
        self.members += 1
        self.logical_size += size
        return size

    def _read_header(self, block: bytes) -> Member | None:
        self.data = self.skip = self.pad = 0
        if block == ZERO_BLOCK:
            self.step = self._read_second_zero
            return None
        header = parse_header(block)
        if header is None:
            return self._lose(f"a bad header follows member {_show(self._last)}" if self._last else _NOT_A_TAR)
        self._last = header.name or b"./"
        if header.bad == "size" or header.size < 0:
            return self._lose(f"member {_show(header.name)} has a bad size")
        if header.typeflag in _EXTENSIONS:
            return self._begin_extension(header)
        if header.typeflag in _PASSED_OVER:
            self._forget()
            return self._pass_over(header.size)
        if not self._extended and header.typeflag != b"S":
            return self._finish(header, header.size, None)
        return self._read_extended(header, block)

    def _read_second_zero(self, block: bytes) -> Member | None:
        if block != ZERO_BLOCK:
            return self._lose("a lone zero block is followed by more")
        if not self._last:
            self.need = _LOOKED_AT
            self.step = self._read_start
            return None
        self.step = self._end
        self.skip = ENDLESS
        return None

    def _read_start(self, rest: bytes) -> Member | None:
        """What follows an end that nothing came before."""
        if any(rest):
            return self._lose(_A_DISK)
        self.step = self._end
        self.skip = ENDLESS
        return None

    def _end(self, _block: bytes) -> Member | None:
        raise AssertionError("a unit after the end")

    def _read_extended(self, header: Header, block: bytes) -> Member | None:
        """A header with extended headers before it, or a sparse map in it."""
        records = self._records
        try:
            if records:
                header = apply_records(header, records)
                if header.size < 0:
                    raise ValueError("a negative size")
            header = header._replace(name=self._long_name or header.name, linkname=self._long_link or header.linkname)
            if header.typeflag == b"S":
                return self._begin_gnu_map(header, block)
            version = sparse.pax_version(records) if records else None
            if version is None:
                return self._finish(header, header.size, None)
            return self._begin_pax_map(header, version)
        except ValueError as error:
            # Without a size that can be believed the next header cannot be found.
            return self._lose(f"member {_show(header.name)} has {error} in its headers")

    # -- extended headers

    def _begin_extension(self, header: Header) -> Member | None:
        size = header.size
        if size > self._limits.max_header_size:
            self._report(f"an extended header of {size} bytes is over the limit of {self._limits.max_header_size}")
            return self._pass_over(size)
        if size:
            self._extension = (header.typeflag, size)
            self.need = size + -size % BLOCK
            self.step = self._read_extension
        return None

    def _read_extension(self, unit: bytes) -> Member | None:
        typeflag, size = self._extension
        self.need = BLOCK
        self.step = self._read_header
        self._extended = True
        body = unit[:size]
        if typeflag == b"L":
            self._long_name = body.partition(b"\0")[0]
        elif typeflag == b"K":
            self._long_link = body.partition(b"\0")[0]
        else:
            try:
                self._records = parse_records(body)
            except ValueError as error:
                self._report(f"extended header {_show(self._last)} has {error}")
        return None

    def _forget(self) -> None:
        """Drop what extended headers said: it holds for one member."""
        self._extended = False
        self._records = {}
        self._long_name = self._long_link = b""

    # -- sparse maps

    def _begin_gnu_map(self, header: Header, block: bytes) -> Member | None:
        if not header.gnu:
            raise ValueError("a sparse map that is not GNU's")
        segments, extended, size = sparse.parse_gnu_header(block)
        self._map = sparse.PendingMap(header, size, segments)
        if extended:
            self.step = self._read_gnu_map
            return None
        return self._finish_sparse(self._map)

    def _begin_pax_map(self, header: Header, version: str) -> Member | None:
        records = self._records
        if header.typeflag in _KINDS:
            raise ValueError("a sparse map and no data")
        real_size = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize")
        size = parse_integer(real_size) if real_size else header.size
        header = header._replace(name=records.get(b"GNU.sparse.name") or header.name)
        if version == "1":
            self._map = sparse.PendingMap(header, size, [])
            self.step = self._read_data_map
            return None
        return self._finish_sparse(sparse.PendingMap(header, size, sparse.parse_pax_map(records)))

    def _read_gnu_map(self, block: bytes) -> Member | None:
        pending = self._map
        assert pending is not None
        try:
            done = pending.read_gnu(block, self._limits.max_header_size)
        except ValueError as error:
            return self._lose(f"member {_show(pending.header.name)} has {error} in its sparse map")
        return self._finish_sparse(pending) if done else None

    def _read_data_map(self, block: bytes) -> Member | None:
        pending = self._map
        assert pending is not None
        try:
            done = pending.read_data(block, self._limits.max_header_size)
        except ValueError as error:
            return self._lose(f"member {_show(pending.header.name)} has {error} in its sparse map")
        if not done:
            return None
        header = pending.header
        pending.header = header._replace(size=header.size - pending.map_size)
        return self._finish_sparse(pending)

    def _finish_sparse(self, pending: sparse.PendingMap) -> Member | None:
        header, size, segments = pending.header, pending.size, pending.segments
        self._map = None
        self.step = self._read_header
        wrong = sparse.check_segments(segments, size, header.size)
        if wrong:
            self.members += 1
            return self._refuse(header.name, wrong, header.size)
        return self._finish(header, size, tuple(segment for segment in segments if segment[1]))

    # -- members

    def _finish(self, header: Header, size: int, segments: tuple[tuple[int, int], ...] | None) -> Member | None:
        """Make the member of a header that everything has been applied to.

        Args:
            header: the header; `size` in it is what is stored.
            size: logical size.
            segments: of a sparse member.
        """
        name, mode, uid, gid, stored, mtime_ns, flag, linkname, uname, gname, major, minor, _, bad = header
        self._last = name or b"./"
        self.members += 1
        if self.members > self._limits.max_members:
            return self._lose(f"more than {self._limits.max_members} members")
        kind = _KINDS.get(flag, _REGULAR)
        if flag == b"\0" and name.endswith(b"/"):
            kind = Kind.DIRECTORY
        if kind is not _REGULAR:
            size, stored = 0, (stored if flag in _WITH_DATA else 0)
        if bad:
            return self._refuse(name, f"has a bad {bad}", stored)
        if size > (most := self._limits.max_member_size):
            wrong = f"claims {size} bytes, holes included, over the limit of {self._limits.show(most)}"
            return self._refuse(name, wrong, stored)
        try:
            xattrs = parse_xattrs(self._records) if self._records else NO_XATTRS
            if kind not in _DEVICES:
                major = minor = 0
            member = tuple.__new__(Member, (  # half the time of Member(...)
                normalise_path(name), name, kind, mode & 0o7777, uid, gid, mtime_ns, size,
                stored if kind is _REGULAR else 0, linkname if kind in _LINKS else b"", major, minor,
                uname, gname, xattrs, segments,
            ))  # fmt: skip
            wrong = check_member(member)
        except LayerInvalidError as error:
            wrong = error.reason
        except ValueError as error:
            wrong = f"has {error}"
        if wrong:
            return self._refuse(name, wrong, stored)
        return self._accept(member, stored)

    def _accept(self, member: Member, stored: int) -> Member | None:
        self.logical_size += member.size
        if self.logical_size > (most := self._limits.max_layer_size):
            return self._lose(f"files of more than {self._limits.show(most)} bytes in all, holes included")
        if stored:
            self.pad = -stored % BLOCK
            if member.kind is _REGULAR:
                self.data, self.skip = stored, self.pad
            else:
                self.skip = stored + self.pad
        if self._extended:
            self._forget()
        return member

    def _refuse(self, name: bytes, reason: str, stored: int) -> Member | None:
        """Give one member up, and go on after its data."""
        self._report(f"member {_show(name)} {reason}")
        self._forget()
        return self._pass_over(stored)

    def _pass_over(self, size: int) -> Member | None:
        self.pad = -size % BLOCK
        self.skip = size + self.pad
        return None

    def _lose(self, reason: str) -> Member | None:
        """Give the rest of the stream up."""
        self._report(reason)
        self.step = self._end
        self.skip = ENDLESS
        return None

    def _report(self, reason: str) -> None:
        if not self.problem:
            self.problem = reason


def _show(name: bytes) -> str:
    return repr(show_name(name))
