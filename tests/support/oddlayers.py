"""Stacks of odd layers, out of a seed: what a builder may write, though hardly any does.

Few names, so that members meet: replaced by other kinds, removed, linked, written through symlinks; spelled in every
way, in two dialects, with modes, owners, times and attributes at the edges. `stack` chooses, and leaves out most of
what everybody refuses; `encode_layer` makes a tar, by the table of POSIX and the pages of GNU tar and PAX.
"""

from __future__ import annotations

import gzip
import random
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import zstandard

from tests.image.harness import END, make_extension, make_header, make_records, pad

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NS = 10**9
_T = 1_600_000_000 * _NS
_GNU = b"ustar  \0"
_FLAGS = {"file": b"0", "link": b"1", "symlink": b"2", "char": b"3", "block": b"4", "dir": b"5", "fifo": b"6"}
_KINDS = ("dir", "file", "symlink", "link", "whiteout", "opaque", "char", "block", "fifo")
_OFTEN = (5.0, 8.0, 3.0, 3.0, 3.0, 1.5, 0.4, 0.4, 0.4)

_NAMES = (b"a", b"b", b"c", b"d")
_ODD_NAMES = (
    b"n" * 255, b"\xff\xfe\x80", b"new\nline", b" ", b"*", b"\\", b"...", b"..a", b".wh", b".whx", b"a.wh.b",
    "ä€\U0001f600".encode(), b"\x01\x7f", b"x" * 100, b"y" * 101,
)  # fmt: skip
_SPELLINGS = (b"./%s", b"/%s", b"q/../%s", b"././//%s")
_TARGETS = (b".", b"..", b"../..", b"../b", b"/", b"../../../../etc", b"a/../b", b"./c/", b"//a")
_MODES = (0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0, 0o7777, 0o0111, 0o100644)
_OWNERS = (0, 0, 1, 1000, 65534, 0o7777777, 0o7777777 + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 2)
# Within what an ext4 can keep, and umoci can say: nanoseconds of 64 bits.
_TIMES = (
    0, _NS, _T, _T + 123_456_789, -_NS, -_NS - _NS // 2, -_NS // 4, 1, ((1 << 31) - 1) * _NS, (1 << 31) * _NS,
    -(1 << 31) * _NS, ((1 << 33) - 1) * _NS, (1 << 33) * _NS,
)  # fmt: skip
_SIZES = (0, 1, 3, 60, 64, 65, 511, 512, 513, 4095, 4096, 4097, 20_000)
_HOLES = (((0, 512), (4096, 1024), (9728, 272)), ((1024, 512), (5000, 0)))
_DEVICES = ((1, 3), (0, 0), (4095, 1048575), (7, 300))

_ANY = 0xFFFFFFFF
_ACL_MODE = 0o650
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry) for entry in ((1, 6, _ANY), (2, 7, 1000), (4, 4, _ANY), (16, 5, _ANY), (32, 0, _ANY))
)
_ACCESS = b"system.posix_acl_access"
_XATTRS: tuple[dict[bytes, bytes], ...] = (
    {b"user.a": b"1"},
    {b"user.empty": b"", b"user.b": b"\0\xff=\n"},
    {b"user.long": bytes(range(256)) * 6},
    {b"user." + b"n" * 200: b"v"},
    {b"trusted.t": b"t"},
    {b"security.capability": struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)},
    {b"security.capability": struct.pack("<IIIIII", 0x03000001, 1 << 13, 0, 0, 0, 1000)},
    {_ACCESS: _ACL},
    {_ACCESS: _ACL, b"user.a": b"2"},
    {b"user.overlay.opaque": b"y"},
    {b"trusted.overlay.opaque": b"y"},
    {b"trusted.overlay.redirect": b"/a"},
    {b"trusted.overlay.metacopy": b""},
    {b"trusted.overlay.whiteout": b""},
    {b"trusted.overlay.overlay.opaque": b"y"},
)


@dataclass(frozen=True, slots=True)
class Odd:
    """A member before it is bytes.

    Args:
        name: as the archive spells it.
        kind: one of `_FLAGS`.
        data: what is stored of a file.
        link: target.
        device: its numbers.
        dialect: pax or gnu, which is taken where it can say all of this.
        sparse: of a file with holes, the form of its map: old, 0.0, 0.1 or 1.0.
        holes: (offset, size) of what is stored.
        size: with the holes.
    """

    name: bytes
    kind: str
    data: bytes = b""
    link: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = _T
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    device: tuple[int, int] = (0, 0)
    dialect: str = "pax"
    sparse: str = ""
    holes: tuple[tuple[int, int], ...] = ()
    size: int = 0


def stack(seed: int) -> list[list[Odd]]:
    """The layers of a seed, the lowest first."""
    return _Maker(random.Random(seed)).stack()


class _Names:
    """What there is, about: good enough to choose members by. What is right is for the test to say."""

    def __init__(self) -> None:
        self.kinds: dict[bytes, str] = {}
        self._targets: dict[bytes, bytes] = {}
        self._new: set[bytes] = set()

    def begin_layer(self) -> None:
        self._new = set()

    def put(self, odd: Odd) -> bool:
        """Note what a member makes; False, and nothing is done, if everybody would refuse it."""
        directory, _, name = _plain(odd.name).rpartition(b"/")
        parent = self._follow(directory)
        if parent is None:
            return False
        if name.startswith(b".wh."):
            opaque = name == b".wh..wh..opq"
            self._forget(parent if opaque else _join(parent, name[4:]), keep=opaque, spare=True)
            return True
        above = _prefixes(parent)
        path = _join(parent, name)
        source = self._source(odd) if odd.kind == "link" else None
        if any(self.kinds.get(one, "dir") != "dir" for one in above) or (odd.kind == "link" and source in (None, path)):
            return False
        for one in above:
            self.kinds.setdefault(one, "dir")
        kind, target = odd.kind, odd.link
        if source is not None:
            kind, target = self.kinds[source], self._targets.get(source, b"")
        if kind != "dir" or self.kinds.get(path) != "dir":
            self._forget(path)
        if path:
            self.kinds[path], self._targets[path] = kind, target
        self._new |= {*above, path}
        return True

    def _source(self, odd: Odd) -> bytes | None:
        directory, _, name = _plain(odd.link).rpartition(b"/")
        parent = self._follow(directory)
        path = None if parent is None else _join(parent, name)
        return path if path is not None and self.kinds.get(path, "dir") != "dir" else None

    def _forget(self, path: bytes, *, keep: bool = False, spare: bool = False) -> None:
        for known in self.kinds.keys() - (self._new if spare else set()):
            if not path or known.startswith(path + b"/") or (known == path and not keep):
                del self.kinds[known]

    def _follow(self, path: bytes) -> bytes | None:
        """Without symlinks; None in a loop."""
        done: list[bytes] = []
        todo = path.split(b"/")[::-1]
        for _ in range(200):
            if not todo:
                return b"/".join(done)
            name = todo.pop()
            if name == b"..":
                done = done[:-1]
            elif name not in (b"", b"."):
                here = b"/".join([*done, name])
                if self.kinds.get(here) == "symlink":
                    target = self._targets[here]
                    done = [] if target.startswith(b"/") else done
                    todo += target.split(b"/")[::-1]
                else:
                    done.append(name)
        return None


class _Maker:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._known: list[bytes] = []
        self._names = _Names()

    def stack(self) -> list[list[Odd]]:
        return [self._layer(number) for number in range(self._chance.choice((2, 2, 3, 3, 4, 5, 6, 8)))]

    def _layer(self, number: int) -> list[Odd]:
        self._names.begin_layer()
        count = self._chance.choice((0, 1, 3, 6, 10, 16) if number else (4, 10, 20))
        made = [odd for _ in range(count) for odd in self._some()]
        # A few stay that everybody should refuse.
        return [odd for odd in made if self._names.put(odd) or self._is(0.01)]

    def _is(self, share: float) -> bool:
        return self._chance.random() < share

    def _some(self) -> list[Odd]:
        if self._is(0.03):  # one after the other in the same place
            path = self._path()
            return [self._member(path, kind) for kind in self._chance.choices(("dir", "file", "symlink"), k=4)]
        if self._is(0.02):
            depth = self._chance.choice((40, 130))
            return [self._member(b"/".join([b"p%d" % self._chance.randrange(3)] * depth), "file")]
        return [self._member(self._path(), self._chance.choices(_KINDS, _OFTEN)[0])]

    def _name(self) -> bytes:
        return self._chance.choice(_ODD_NAMES if self._is(0.06) else _NAMES)

    def _path(self) -> bytes:
        if not self._known or self._is(0.5):
            return b"/".join(self._name() for _ in range(self._chance.choice((1, 1, 2, 2, 3, 4))))
        path = self._chance.choice(self._known)
        if self._is(0.3):
            return path + b"/" + self._name()
        return path.rpartition(b"/")[0] or path if self._is(0.15) else path

    def _spell(self, path: bytes, kind: str = "") -> bytes:
        if self._is(0.2):
            path = self._chance.choice(_SPELLINGS) % path
        elif self._is(0.1):
            path = path.replace(b"/", self._chance.choice((b"//", b"/./")))
        return path + b"/" if kind == "dir" and self._is(0.8) else path

    def _member(self, path: bytes, kind: str) -> Odd:
        pick = self._chance.choice
        if kind == "whiteout":
            parent, _, base = path.rpartition(b"/")
            return Odd(self._spell(_join(parent, b".wh." + base)), "file", dialect=pick(("pax", "gnu")))
        if kind == "opaque":
            return Odd(self._spell(b".wh..wh..opq" if self._is(0.1) else path + b"/.wh..wh..opq"), "file")
        if kind == "dir" and self._is(0.04):
            return Odd(pick((b".", b"./", b"/", b"./.")), "dir", mode=pick(_MODES), mtime_ns=pick(_TIMES))
        self._known.append(path)
        xattrs = self._chance.choice(_XATTRS) if kind in ("file", "dir") and self._is(0.15) else {}
        odd = Odd(
            self._spell(path, kind),
            kind,
            link=self._target(kind),
            mode=pick(_MODES) if self._is(0.5) else 0o755,
            uid=pick(_OWNERS) if self._is(0.3) else 0,
            gid=pick(_OWNERS) if self._is(0.3) else 0,
            mtime_ns=pick(_TIMES),
            xattrs=xattrs,
            device=pick(_DEVICES) if kind in ("char", "block") else (0, 0),
            dialect=pick(("pax", "pax", "gnu")),
        )
        if _ACCESS in xattrs:  # an ACL says the mode, too
            odd = replace(odd, mode=_ACL_MODE)
        return self._fill(odd) if kind == "file" else odd

    def _target(self, kind: str) -> bytes:
        if kind == "link":
            files = [name for name, what in self._names.kinds.items() if what != "dir"]
            return self._spell(self._chance.choice(files) if files and self._is(0.97) else self._path())
        if kind != "symlink":
            return b""
        if self._is(0.2):
            return self._chance.choice(_TARGETS)
        return b"/" + self._path() if self._is(0.3) else self._path()

    def _fill(self, odd: Odd) -> Odd:
        if self._is(0.08):
            holes = self._chance.choice(_HOLES)
            data = self._chance.randbytes(sum(size for _, size in holes))
            # Umoci cannot read the oldest form.
            form = "old" if self._is(0.02) else self._chance.choice(("0.0", "0.1", "1.0"))
            dialect = "gnu" if form == "old" else "pax"
            return replace(odd, data=data, sparse=form, holes=holes, size=10_000, dialect=dialect)
        size = self._chance.choice((131072, 131073, 400_000) if self._is(0.02) else _SIZES)
        head = self._chance.randbytes(min(size, 16))
        return replace(odd, data=head + bytes([self._chance.randrange(256)]) * (size - len(head)))


def encode_layer(members: Sequence[Odd], ending: bytes = END) -> bytes:
    """A tar."""
    return b"".join(map(_encode, members)) + ending


def _encode(odd: Odd) -> bytes:
    gnu = odd.dialect == "gnu" and (odd.sparse == "old" or (not odd.xattrs and odd.mtime_ns % _NS == 0))
    return _encode_gnu(odd) if gnu else _encode_pax(odd)


def _encode_gnu(odd: Odd) -> bytes:
    longer = b"".join(
        make_extension(flag, text + b"\0") for flag, text in ((b"L", odd.name), (b"K", odd.link)) if len(text) > 99
    )
    flag, tail = _FLAGS[odd.kind], b""
    if odd.sparse:
        flag = b"S"
        entries = b"".join(_number(offset, 12) + _number(size, 12) for offset, size in odd.holes)
        tail = bytes(41) + entries.ljust(96, b"\0") + b"\0" + _number(odd.size, 12)
    header = make_header(
        odd.name[:99], _number(len(odd.data), 12), flag, mode=_number(odd.mode, 8), uid=_number(odd.uid, 8),
        gid=_number(odd.gid, 8), mtime=_number(odd.mtime_ns // _NS, 12), link=odd.link[:99], magic=_GNU,
        major=_number(odd.device[0], 8), minor=_number(odd.device[1], 8), tail=tail,
    )  # fmt: skip
    return longer + header + pad(odd.data)


def _encode_pax(odd: Odd) -> bytes:
    records, data = _sparse_records(odd)
    if not odd.sparse and (len(odd.name) > 99 or not odd.name.isascii()):
        records.append((b"path", odd.name))
    if len(odd.link) > 99 or not odd.link.isascii():
        records.append((b"linkpath", odd.link))
    records += [(key, b"%d" % value) for key, value in ((b"uid", odd.uid), (b"gid", odd.gid)) if value > 0o7777777]
    seconds = odd.mtime_ns // _NS
    if odd.mtime_ns % _NS or not 0 <= seconds < 1 << 33:
        whole, fraction = divmod(abs(odd.mtime_ns), _NS)
        text = b"%s%d.%09d" % (b"-" if odd.mtime_ns < 0 else b"", whole, fraction)
        records.append((b"mtime", text.rstrip(b"0").rstrip(b".")))
    records += [(b"SCHILY.xattr." + name, value) for name, value in odd.xattrs.items()]
    header = make_header(
        odd.name[:99], len(data), _FLAGS[odd.kind], mode=odd.mode, uid=min(odd.uid, 0o7777777),
        gid=min(odd.gid, 0o7777777), mtime=min(max(0, seconds), (1 << 33) - 1), link=odd.link[:99],
        major=odd.device[0], minor=odd.device[1],
    )  # fmt: skip
    return (make_extension(b"x", make_records(records)) if records else b"") + header + pad(data)


def _sparse_records(odd: Odd) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """What says where a file's bytes are, and what is stored of it."""
    size, count = b"%d" % odd.size, b"%d" % len(odd.holes)
    if odd.sparse == "0.0":
        records = [(b"path", odd.name), (b"GNU.sparse.size", size), (b"GNU.sparse.numblocks", count)]
        for offset, length in odd.holes:
            records += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length)]
        return records, odd.data
    if odd.sparse == "1.0":
        records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]
        table = count + b"\n" + b"".join(b"%d\n%d\n" % piece for piece in odd.holes)
        return [*records, (b"GNU.sparse.name", odd.name), (b"GNU.sparse.realsize", size)], pad(table) + odd.data
    if odd.sparse:
        text = b",".join(b"%d,%d" % piece for piece in odd.holes)
        records = [(b"GNU.sparse.name", odd.name), (b"GNU.sparse.size", size), (b"GNU.sparse.numblocks", count)]
        return [*records, (b"GNU.sparse.map", text)], odd.data
    return [], odd.data


def _number(value: int, width: int) -> bytes:
    """As GNU tar writes it: octal where it fits, base-256 where not."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    mark = b"\xff" if value < 0 else b"\x80"
    return mark + (value % (1 << (8 * (width - 1)))).to_bytes(width - 1, "big")


FORMATS = {"plain": "tar", "gzip": "tar+gzip", "members": "tar+gzip", "zstd": "tar+zstd", "frames": "tar+zstd"}
"""How a layer can be compressed, and how its media type ends."""


def compress(tar: bytes, form: str) -> bytes:
    """A blob with a tar in it, in one of `FORMATS`."""
    half = len(tar) // 2
    if form == "gzip":
        return gzip.compress(tar, 6, mtime=0)
    if form == "members":
        parts = (tar[:half], b"", tar[half:])
        return b"".join(gzip.compress(part, level, mtime=level) for part, level in zip(parts, (1, 6, 9), strict=True))
    if form == "zstd":
        return zstandard.ZstdCompressor(3, write_checksum=True).compress(tar)
    if form == "frames":
        packer = zstandard.ZstdCompressor(1)
        skipped = struct.pack("<II", 0x184D2A50, 5) + b"hello"
        return packer.compress(tar[:half]) + skipped + packer.compress(tar[half:]) + skipped
    return tar


def _plain(name: bytes) -> bytes:
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            parts = parts[:-1]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _prefixes(path: bytes) -> list[bytes]:
    parts = path.split(b"/") if path else []
    return [b"/".join(parts[: at + 1]) for at in range(len(parts))]
