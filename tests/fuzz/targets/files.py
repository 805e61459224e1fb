"""Files and conversations of a machine: journals of overlays, files of pools, the node's control socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pagepool.errors import BusyError, CorruptError, InvalidError, StoreFormatError
from pagepool.image import Kind
from pagepool.mount.mountinfo import parse_mountinfo
from pagepool.node.answering import ControlServer
from pagepool.node.control import Channel, decode_error
from pagepool.overlay import OverlayFileSystem
from pagepool.overlay import arena as arenas
from pagepool.overlay import journal as journals
from pagepool.overlay.journal import Header, parse_header
from pagepool.pool.layout import LOG, PARTIAL, parse_format
from pagepool.pool.log import Log
from pagepool.pool.mapfile import HEAD, MapFile, data_path, map_path
from pagepool.vfs import ROOT, Changes
from tests.fuzz.target import Reader, Target, blocks
from tests.overlay.harness import TREE, build_image

_BOOT = bytes(16)
_BASE = build_image(1).file_system()
_KEY = b"\1" * 32


def _journal(data: bytes) -> None:
    """A journal of records with right checksums: a state whose every inode can be asked for, or CorruptError."""
    header = Header(TREE, 12, {}, 7)
    file = bytearray(header.encode())
    for body in Reader(data).blocks():
        file += journals.frame(body, len(file), header.nonce)
    _recover(bytes(file))


def _journal_file(data: bytes) -> None:
    """Any bytes as a journal."""
    _recover(data)


def _recover(file: bytes) -> None:
    with TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        (directory / journals.NAME).write_bytes(file)
        with (directory / arenas.NAME).open("wb") as blocks_file:
            blocks_file.truncate(1 << 20)
        overlay = OverlayFileSystem.open(directory, _BASE, tree=TREE)
        try:
            _walk(overlay, ROOT, 0)
        finally:
            overlay.close()


def _walk(overlay: OverlayFileSystem, ino: int, depth: int) -> None:
    """Look at everything; what cannot be had is an errno."""
    with suppress(OSError, CorruptError):
        kind = overlay.attributes(ino).kind
        overlay.xattrs(ino)
        if kind is Kind.REGULAR:
            overlay.read(ino, 0, 5000)
        if kind is Kind.DIRECTORY and depth < 8:
            for entry in list(overlay.entries(ino))[:20]:
                _walk(overlay, entry.ino, depth + 1)


def _pool(data: bytes) -> None:
    """Files of a pool: what a partial counts, what happened, which format it is."""
    how = Reader(data)
    kind, body = how.byte() % 3, how.rest()
    with TemporaryDirectory(dir="/dev/shm") as name:
        pool = Path(name)
        (pool / PARTIAL).mkdir()
        if kind == 0:
            parse_format(pool, body)
        elif kind == 1:
            (pool / LOG).write_bytes(body)
            log = Log(pool)
            assert len(list(log.read())) == len(body) // 48
            log.close()
        else:
            map_path(pool, _KEY).write_bytes(body)
            with data_path(pool, _KEY).open("wb") as file:
                file.truncate(HEAD.unpack_from(body.ljust(HEAD.size, b"\0"))[4] % (1 << 40))
            charged = MapFile.read_charged(pool, _KEY)
            assert charged is None or charged >= 0


def _control(data: bytes) -> None:
    """The node's socket: an answer or none, and the thread is free again. The same bytes as an answer of the node."""

    def refuse(*_: object) -> None:
        raise BusyError("it is in use")

    def say(_channel: Channel, request: dict[str, Any]) -> Any:
        return request["word"]

    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(5)
        ours.sendall(data[:60_000])
        ours.shutdown(socket.SHUT_WR)
        ControlServer(ours, {"say": say, "refuse": refuse})._converse(Channel(theirs))
        answer = ours.makefile("rb").read()
        assert answer == b"" or set(json.loads(answer)) <= {"ok", "error"}
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(data[:60_000])
        ours.shutdown(socket.SHUT_WR)
        channel = Channel(theirs)
        try:
            while (message := channel.receive()) is not None:
                if isinstance(message.get("error"), dict):
                    assert isinstance(decode_error(message["error"]), Exception)
        finally:
            channel.close()


def _mountinfo(data: bytes) -> None:
    """Names of mounts are whatever those who mount call them: no line is taken for another, and none is lost."""
    how = Reader(data)
    name, source = b"/" + how.block(), how.block()
    line = b"36 35 98:0 / %b rw,noatime master:1 - ext4 %b rw\n" % (_escaped(name), _escaped(source))
    (point,) = parse_mountinfo(line)
    assert bytes(point.path) == bytes(Path(name.replace(b"\0", b"").decode("utf-8", "surrogateescape")))
    assert point.source.encode("utf-8", "surrogateescape") == source.replace(b"\0", b"")


def _escaped(name: bytes) -> bytes:
    """As the kernel writes it (`show_path`, fs/proc_namespace.c)."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes((byte,)) for byte in name if byte)


def _journals() -> Iterator[bytes]:
    """What an overlay writes when it is worked on."""
    with TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        overlay = OverlayFileSystem.open(directory, _BASE, tree=TREE)
        made = overlay.create(ROOT, b"new", Kind.REGULAR, 0o644, 1, 2)
        overlay.write(made, 0, b"x" * 5000)
        below = overlay.create(ROOT, b"below", Kind.DIRECTORY, 0o755, 0, 0)
        overlay.rename(ROOT, b"new", below, b"moved")
        overlay.link(made, ROOT, b"link")
        overlay.set_attributes(made, Changes(size=100, mode=0o600))
        overlay.set_xattr(made, b"user.a", b"v")
        overlay.remove_xattr(made, b"user.a")
        overlay.unlink(ROOT, b"b")
        overlay.sync()
        overlay.close()
        yield (directory / journals.NAME).read_bytes()


def _bodies() -> Iterator[bytes]:
    for file in _journals():
        header, start = parse_header(file, Path("journal"))
        found = journals.scan(memoryview(file), start, header.nonce, Path("journal"))
        yield blocks(*(bytes(record.body) for record in found.records))
        yield blocks(*(bytes(record.body) for record in found.records[:3]))


def _pools() -> Iterator[bytes]:
    yield b"\0pagepool pool\nversion 1\nid " + b"ab" * 16 + b"\ndurable yes\n"
    yield b"\1" + bytes(48 * 3)
    size = 300_000
    yield b"\2" + HEAD.pack(b"PPMAP\0\0\x01", _BOOT, 0, 3, size, bytes(32)) + b"\1\0\2"


def _lines() -> Iterator[bytes]:
    yield b'{"op": "say", "word": "hello"}\n'
    yield b'{"op": "refuse"}\n'
    yield b'{"progress": 5}\n{"error": {"class": "BusyError", "message": "x"}}\n{"ok": null}\n'
    yield b'{"error": {"class": "OSError", "errno": 2, "message": "x", "filename": "/a"}}\n'
    yield b'{"op": ' + b"[" * 3000 + b"\n"


TARGETS = (
    Target("journal", _journal, (CorruptError, InvalidError), _bodies),
    Target("journal-file", _journal_file, (CorruptError, InvalidError, StoreFormatError), _journals),
    Target("pool", _pool, (StoreFormatError,), _pools, (b"durable no", b"PPMAP\0\0\x01")),
    Target(
        "control", _control, (ValueError,), _lines, (b'"op":', b"\n", b"[" * 3000, b'{"a":' * 1500, b"null", b"\\ud800")
    ),
    Target("mountinfo", _mountinfo, (), lambda: (blocks(b"/a b\\c", b"none"), blocks(b"/", b"x"))),
)
