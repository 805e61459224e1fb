"""A disk that is full: the operation fails, nothing of it is there, and all goes on when there is space again."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.image import Kind
from pagepool.overlay import OverlayFileSystem
from pagepool.vfs import Changes
from tests.faults import file_size_limit, filled, small_file_system, thin_file_system
from tests.overlay.harness import PAGE, TREE, attempt, dump_overlay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pagepool.vfs import FileSystem


def test_a_full_disk(tmp_path: Path, base: FileSystem) -> None:
    with small_file_system(tmp_path, 32 << 20) as small:
        overlay = OverlayFileSystem.open(small / "upper", base, tree=TREE)
        ino = overlay.create(1, b"new", Kind.REGULAR, 0o644, 0, 0)
        overlay.write(ino, 0, bytes(10 * PAGE))
        with filled(small):
            before = dump_overlay(overlay)
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                overlay.write(ino, 0, b"x" * (1 << 20))
            assert dump_overlay(overlay) == before
            # The journal has room in its last block, until it has none.
            results: list[object] = [0]
            while results[-1] != f"errno {errno.ENOSPC}":
                assert len(results) < 1000
                before = dump_overlay(overlay)
                more = partial(overlay.create, 1, b"%0200d" % len(results), Kind.REGULAR, 0o644, 0, 0)
                results.append(attempt(more))
            assert dump_overlay(overlay) == before
        overlay.write(ino, 0, b"y" * (1 << 20))
        overlay.sync()
        after = dump_overlay(overlay)
        overlay.close()
        overlay = OverlayFileSystem.open(small / "upper", base, tree=TREE)
        assert dump_overlay(overlay) == after
        overlay.close()


def test_a_disk_that_refuses_for_a_while(tmp_path: Path, base: FileSystem) -> None:
    """The kernel says once that it could not write, and then takes what it has in memory for written: what a sync has
    covered is there nevertheless, when memory has forgotten it."""
    data = os.urandom(1 << 20)
    with thin_file_system(tmp_path, 24 << 20) as (thin, backing):
        overlay = OverlayFileSystem.open(thin / "upper", base, tree=TREE)
        ino = overlay.create(1, b"new", Kind.REGULAR, 0o644, 0, 0)
        overlay.sync()
        with filled(backing):
            overlay.write(ino, 0, data)
            with pytest.raises(OSError, match=f"({os.strerror(errno.ENOSPC)}|{os.strerror(errno.EIO)})"):
                overlay.sync()
            overlay.close()
        overlay = OverlayFileSystem.open(thin / "upper", base, tree=TREE)
        overlay.sync()
        overlay.close()
        for path in (thin / "upper").iterdir():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        overlay = OverlayFileSystem.open(thin / "upper", base, tree=TREE)
        assert overlay.attributes(ino).size == len(data)
        assert bytes(overlay.read(ino, 0, len(data))) == data
        overlay.close()


def attempts(overlay: OverlayFileSystem, ino: int) -> list[Callable[[], Any]]:
    """Operations of every kind."""
    return [
        lambda: overlay.write(ino, PAGE + 1, b"y" * 3 * PAGE),
        lambda: overlay.set_attributes(ino, Changes(size=PAGE + 100)),
        lambda: overlay.allocate(ino, 10, PAGE, 3),
        lambda: overlay.create(1, b"more", Kind.DIRECTORY, 0o755, 0, 0),
        lambda: overlay.link(ino, 1, b"other"),
        lambda: overlay.rename(1, b"b", 1, b"new"),
        lambda: overlay.unlink(1, b"new"),
        lambda: overlay.set_xattr(ino, b"user.a", b"x" * 5000),
    ]


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("room", [0, 5, 4000])
def test_a_write_that_is_cut_short(number: int, room: int, tmp_path: Path, base: FileSystem) -> None:
    """The kernel takes a part of a record, or of the blocks, and refuses the rest."""
    overlay = OverlayFileSystem.open(tmp_path / "upper", base, tree=TREE)
    ino = overlay.create(1, b"new", Kind.REGULAR, 0o644, 0, 0)
    overlay.write(ino, 0, b"x" * 8 * PAGE)
    overlay.set_attributes(ino, Changes(size=3 * PAGE))
    overlay.sync()
    # The journal is the longer file: blocks find room in five free slots, and the record that names them does not.
    journal, blocks = overlay.directory / "journal", overlay.directory / "blocks"
    while journal.stat().st_size < 9 * PAGE:
        overlay.set_xattr(1, b"user.fill", bytes(5000))
    before, size = dump_overlay(overlay), journal.stat().st_size
    with file_size_limit(size + room):
        result = attempt(attempts(overlay, ino)[number])
    if result == f"errno {errno.EFBIG}":
        assert dump_overlay(overlay) == before
        assert journal.stat().st_size == size
        # No slot was lost: the next blocks lie where those would have been.
        overlay.write(ino, 0, b"z" * 5 * PAGE)
        assert blocks.stat().st_size == 8 * PAGE
    else:
        assert room == 4000
    overlay.create(1, b"later", Kind.REGULAR, 0o644, 0, 0)
    after = dump_overlay(overlay)
    overlay.close()
    overlay = OverlayFileSystem.open(tmp_path / "upper", base, tree=TREE)
    assert dump_overlay(overlay) == after
    overlay.close()
