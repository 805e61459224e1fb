"""An overlay's directory: one opener at a time, one image for ever, told without opening it, and removed."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import BusyError, InvalidError, StoreFormatError
from pagepool.image import Kind
from pagepool.overlay import OverlayFileSystem, OverlayUnknownError, discard, read_info
from pagepool.overlay.journal import VERSION, Header, write_journal
from pagepool.overlay.records import encode_open
from pagepool.vfs import Changes
from tests.overlay.harness import TREE, dump_overlay
from tests.support.trees import TreeBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.vfs import FileSystem


def test_it_is_open_once_at_a_time(opened: Callable[..., OverlayFileSystem], tmp_path: Path) -> None:
    overlay = opened()
    for attempt in (opened, lambda: discard(tmp_path / "upper")):
        with pytest.raises(BusyError, match=str(tmp_path / "upper")):
            attempt()
    overlay.close()
    opened().close()


def test_it_is_open_once_though_it_is_made_anew_meanwhile(
    opened: Callable[..., OverlayFileSystem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the directory and locking it another one is put in its place."""
    opened().close()
    flock = fcntl.flock

    def overtaken(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        discard(tmp_path / "upper")
        opened()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", overtaken)
    with pytest.raises(BusyError, match="in use"):
        opened()


def test_it_belongs_to_one_image(opened: Callable[..., OverlayFileSystem], tmp_path: Path) -> None:
    overlay = opened()
    overlay.unlink(1, b"b")
    before = dump_overlay(overlay)
    overlay.close()
    other = TreeBuilder().file_system()
    with pytest.raises(InvalidError, match=f"{TREE.hex()}, not over {'02' * 32}"):
        OverlayFileSystem.open(tmp_path / "upper", other, tree=b"\x02" * 32)
    assert dump_overlay(opened()) == before


def test_what_the_opener_noted_is_kept(opened: Callable[..., OverlayFileSystem], tmp_path: Path) -> None:
    overlay = opened(info={"repository": "app", "reference": "1", "ports": [1, 2]})
    overlay.write(overlay.create(1, b"new", Kind.REGULAR, 0o644, 0, 0), 0, bytes(1 << 20))
    for _ in range(2):
        found = read_info(tmp_path / "upper")
        assert found.tree == TREE
        assert found.info == {"repository": "app", "reference": "1", "ports": [1, 2]}
        assert found.blocks_size >= 1 << 20
        assert found.journal_size > 0
        overlay._storage.compact()
    overlay.close()
    opened(info={"repository": "other"}).close()
    assert read_info(tmp_path / "upper").info["repository"] == "app"


def test_a_directory_that_holds_something_else_is_left_alone(
    opened: Callable[..., OverlayFileSystem], tmp_path: Path
) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "precious").write_bytes(b"x")
    attempt: Callable[[], object]
    for attempt in (opened, lambda: discard(upper)):
        with pytest.raises(InvalidError, match="precious"):
            attempt()
    assert [path.name for path in upper.iterdir()] == ["precious"]
    for attempt in (lambda: read_info(upper), lambda: read_info(tmp_path / "none"), lambda: discard(tmp_path / "none")):
        with pytest.raises(OverlayUnknownError):
            attempt()


def test_discarding_leaves_nothing(opened: Callable[..., OverlayFileSystem], tmp_path: Path) -> None:
    overlay = opened()
    overlay.unlink(1, b"b")
    overlay.close()
    discard(tmp_path / "upper")
    assert not (tmp_path / "upper").exists()
    assert opened().lookup(1, b"b")


def test_what_a_crash_left_of_discarding_or_making_is_no_overlay(
    opened: Callable[..., OverlayFileSystem], tmp_path: Path
) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "blocks").write_bytes(b"old" * 5000)
    (upper / "journal.new").write_bytes(b"PPOVER")
    with pytest.raises(OverlayUnknownError):
        read_info(upper)
    overlay = opened()
    assert (upper / "blocks").stat().st_size == 0
    assert overlay.lookup(1, b"b")
    overlay.close()
    discard(upper)


def test_nobody_else_may_read_it(opened: Callable[..., OverlayFileSystem], tmp_path: Path) -> None:
    opened()
    upper = tmp_path / "upper"
    assert upper.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o077 for path in upper.iterdir()] == [0, 0]


def test_a_closed_overlay_refuses(opened: Callable[..., OverlayFileSystem]) -> None:
    overlay = opened()
    overlay.write(3, 0, b"x")
    overlay.close()
    overlay.close()
    for attempt in (
        lambda: overlay.write(3, 0, b"y"),
        lambda: overlay.create(1, b"n", Kind.REGULAR, 0o644, 0, 0),
        lambda: overlay.set_attributes(3, Changes(mode=0)),
        overlay.sync,
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            attempt()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_lets_go(opened: Callable[..., OverlayFileSystem]) -> None:
    """What it does by mistake is refused and hurts nothing; its parent's overlay can be opened again while it lives."""
    overlay = opened()
    overlay.write(3, 0, b"before")
    reading, writing = os.pipe()
    running, runs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(writing)
            os.write(runs, b"r")
            refused = 0
            for attempt in (
                lambda: overlay.write(3, 0, b"child"),
                lambda: overlay.read(3, 0, 6),
                lambda: overlay.create(1, b"child", Kind.REGULAR, 0o644, 0, 0),
                overlay.sync,
            ):
                try:
                    attempt()
                except OSError as error:
                    refused += error.errno == errno.EBADF
            overlay.close()
            os.read(reading, 1)
            os._exit(refused)
        finally:
            os._exit(255)
    os.close(reading)
    os.read(running, 1)  # before it runs it has let go of nothing
    overlay.write(3, 0, b"parent")
    overlay.close()
    overlay = opened()
    assert bytes(overlay.read(3, 0, 6)) == b"parent"
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    overlay.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_is_forked_in_the_middle_of_an_operation(opened: Callable[..., OverlayFileSystem]) -> None:
    """Another thread has the lock, and the child has not got that thread: it is refused all the same, and does not
    wait."""
    overlay = opened()
    for lock, attempt in (
        (overlay._storage.lock, lambda: overlay.write(3, 0, b"child")),
        (overlay._storage._sync_lock, overlay.sync),
    ):
        with lock:
            child = os.fork()
            if not child:
                signal.alarm(20)
                try:
                    attempt()
                except OSError as error:
                    os._exit(error.errno or 0)
                finally:
                    os._exit(255)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EBADF
    overlay.write(3, 0, b"parent")


def test_it_stays_where_it_is_when_the_process_goes_elsewhere(
    tmp_path: Path, base: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one has the same relative path there."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        overlay = OverlayFileSystem.open(Path("upper"), base, tree=TREE)
        overlay.create(1, name.encode(), Kind.REGULAR, 0o644, 0, 0)
        if name == "two":
            overlay.close()
            monkeypatch.chdir(tmp_path / "one")
            overlay = OverlayFileSystem.open(Path("upper"), base, tree=TREE)
            monkeypatch.chdir(tmp_path / "two")
            overlay._storage.compact()
        overlay.close()
    for name in ("one", "two"):
        overlay = OverlayFileSystem.open(tmp_path / name / "upper", base, tree=TREE)
        assert overlay.lookup(1, name.encode())
        overlay.close()


def test_files_of_far_centuries_can_be_changed(tmp_path: Path) -> None:
    """A tar may say any time; records have 64 bits of nanoseconds."""
    builder = TreeBuilder()
    builder.file("old", b"x", mtime_ns=-(2**80))
    builder.file("new", b"x", mtime_ns=2**80)
    base = builder.file_system()
    for _ in range(2):
        overlay = OverlayFileSystem.open(tmp_path / "upper", base, tree=TREE)
        for name in (b"old", b"new"):
            overlay.set_attributes(overlay.lookup(1, name), Changes(mode=0o600))
        overlay._storage.compact()
        before = dump_overlay(overlay)
        overlay.close()
    overlay = OverlayFileSystem.open(tmp_path / "upper", base, tree=TREE)
    assert dump_overlay(overlay) == before
    assert overlay.attributes(overlay.lookup(1, b"old")).mtime_ns == -(2**63) + 1
    overlay.close()


def test_an_overlay_of_version_1_goes_on(tmp_path: Path, base: FileSystem) -> None:
    """It is read, and stays of version 1 until it needs a record that only version 2 has."""
    upper = tmp_path / "upper"
    upper.mkdir()
    header = Header(TREE, base.usage().inodes, {"made": "before"}, 5, version=1)
    write_journal(upper / "journal", header, (encode_open(bytes(16), 0),)).close()
    (upper / "blocks").touch()
    overlay = OverlayFileSystem.open(upper, base, tree=TREE)
    ino = overlay.create(1, b"old", Kind.REGULAR, 0o644, 0, 0)
    overlay.rename(1, b"old", 1, b"moved")
    assert _version(upper) == 1
    number = overlay.create_unnamed(1, 0o600, 0, 0)
    overlay.write(number, 0, b"new")
    overlay.link(number, 1, b"new")
    assert _version(upper) == 2
    overlay.close()
    overlay = OverlayFileSystem.open(upper, base, tree=TREE)
    assert overlay.lookup(1, b"moved") == ino
    assert bytes(overlay.read(number, 0, 9)) == b"new"
    overlay.close()
    assert read_info(upper).info == {"made": "before"}


def test_an_overlay_of_a_later_version_is_refused(tmp_path: Path, base: FileSystem) -> None:
    """What it may hold is not known here."""
    (tmp_path / "upper").mkdir()
    header = Header(TREE, base.usage().inodes, {}, 5, version=VERSION + 1)
    write_journal(tmp_path / "upper" / "journal", header, ()).close()
    with pytest.raises(StoreFormatError, match=f"version {VERSION + 1}"):
        OverlayFileSystem.open(tmp_path / "upper", base, tree=TREE)


def _version(upper: Path) -> int:
    with (upper / "journal").open("rb") as file:
        return int.from_bytes(file.read(12)[8:], "little")
