"""`pagepool cp` out of containers that run, and into them: nothing that a container does to its names leads outside."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pagepool.cli import roots
from pagepool.cli.containers import find_running
from pagepool.cli.copying import Copier, LocalPlace
from pagepool.cli.insideplace import InsidePlace, find_views
from pagepool.container.records import RUNNING, hold, list_containers
from pagepool.errors import InvalidError
from tests.container.conftest import READY, begin, end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.container.conftest import Place

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
_TIME_NS = 1_000_000_000_123_456_789


def _cp(place: Place, *words: str | Path) -> tuple[int, str]:
    done = place.call(*place.command("cp", "--quiet", *words))
    return done.returncode, done.stderr


def test_out_and_in(place: Place, tmp_path: Path) -> None:
    """As its programs see it, volumes and files in memory included."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "kept").write_text("of the volume\n")
    options = ("--name", "web", "-v", f"{tmp_path / 'volume'}:/volume", "--tmpfs", "/memory")
    script = "mkdir -p /srv/d/e; echo one >/srv/d/one; ln -s one /srv/d/link; mkfifo /srv/d/e/fifo; id >/memory/id; "
    started = begin(place, *options, "--", "sh", "-c", script + READY)
    out = tmp_path / "out"
    out.mkdir()
    assert _cp(place, "web:/srv/d/link", "web:/volume/kept", "web:/memory/id", out) == (0, "")
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "link": "one\n",
        "kept": "of the volume\n",
        "id": "uid=0(root) gid=0(root) groups=0(root)\n",
    }
    code, err = _cp(place, "-rp", f"{place.containers()[0].id}:/srv/d", tmp_path / "tree")
    assert (code, "/srv/d/e/fifo is neither file, directory nor symlink" in err) == (0, True)
    assert (tmp_path / "tree" / "link").readlink().name == "one"
    assert [path.name for path in sorted(tmp_path.glob("tree/**/*"))] == ["e", "link", "one"]
    (tmp_path / "tree" / "new").write_bytes(b"x" + bytes(3 << 20))
    os.chown(tmp_path / "tree" / "new", 7, 8)
    (tmp_path / "tree" / "new").chmod(0o4751)
    os.setxattr(tmp_path / "tree" / "new", "trusted.color", b"red")
    os.utime(tmp_path / "tree" / "new", ns=(_TIME_NS, _TIME_NS))
    os.chown(tmp_path / "tree" / "link", 5, 6, follow_symlinks=False)
    assert _cp(place, "-r", "--preserve", f"{tmp_path}/tree/.", "web:/etc") == (0, "")
    assert _cp(place, tmp_path / "tree" / "new", "web:/memory/") == (0, "")
    show = "stat -c '%n %a %u:%g %s %.Y' /etc/new /memory/new; stat -c '%N %u:%g' /etc/link; cmp /etc/new /memory/new"
    done = place.call(*place.command("exec", "web", "sh", "-c", show))
    first, second, third = done.stdout.splitlines()
    assert first == "/etc/new 4751 7:8 3145729 1000000000.123456789"
    assert second.startswith("/memory/new 751 0:0 3145729 ")
    assert third == "'/etc/link' -> 'one' 5:6"
    assert os.getxattr(place.root / "etc" / "new", "trusted.color") == b"red"
    assert _cp(place, tmp_path / "tree" / "one", "web:/volume/kept") == (0, "")
    assert (tmp_path / "volume" / "kept").read_text() == "one\n"
    assert place.call(*place.command("stop", "-t", "0", "web")).returncode == 0
    assert end(started)[0] == 137


def test_what_is_refused(place: Place, tmp_path: Path) -> None:
    started = begin(place, "--name", "web", "--read-only", "--", "sh", "-c", READY)
    (tmp_path / "file").write_text("x")
    for words, code, said in (
        (("web:/nothing", tmp_path), 3, "web:/nothing"),
        (("web:/etc", tmp_path), 1, "Is a directory"),
        (("web:/dev/zero", tmp_path), 0, "/dev/zero is neither file, directory nor symlink"),
        ((tmp_path / "file", "web:/etc/file"), 1, "Read-only file system"),
        ((tmp_path / "file", "web:/dev/null"), 1, "Invalid argument"),
        ((tmp_path / "file", "web:/nothing/"), 1, "Not a directory"),
    ):
        found, err = _cp(place, *words)
        assert (found, said in err) == (code, True), (words, err)
    assert place.call(*place.command("stop", "-t", "0", "web")).returncode == 0
    assert end(started)[0] == 137
    # Then the name is an image's.
    assert _cp(place, "--server", "http://127.0.0.1:1", "web:/etc/passwd", tmp_path)[0] == 6


def test_what_is_no_file_system_is_left_out(place: Place, tmp_path: Path) -> None:
    """Of a directory above it; a file of it can be named, but no symlink of the container leads to one."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "file").write_text("x")
    options = ("--name", "web", "-v", f"{tmp_path / 'volume'}:/dev/volume")
    script = "ln -s /proc /all; ln -s /proc/sys/kernel/ostype /type; ln -s /proc/1/oom_score_adj /oom; "
    started = begin(place, *options, "--", "sh", "-c", script + READY)
    code, err = _cp(place, "-r", "web:/dev", tmp_path / "out")
    assert (code, "/dev/null is neither" in err) == (0, True)
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")}
    assert {"shm", "volume", "volume/file"} <= found
    assert not found & {"pts", "mqueue"}
    (record,) = place.containers()
    assert {"/proc", "/sys", "/dev/pts", "/dev/mqueue"} <= find_views(record.pid).keys()
    assert _cp(place, "web:/proc/sys/kernel/ostype", tmp_path / "kernel") == (0, "")
    assert (tmp_path / "kernel").read_text() == "Linux\n"
    assert _cp(place, "web:/proc/sys/../sys/kernel/ostype", tmp_path / "kernel") == (0, "")
    (tmp_path / "score").write_text("77\n")
    for words in (
        ("web:/type", tmp_path),
        ("web:/all/sys/kernel/ostype", tmp_path),
        ("web:/proc/../type", tmp_path),
        (tmp_path / "score", "web:/oom"),
        ("-r", "web:/all/.", tmp_path / "everything"),
    ):
        code, err = _cp(place, *words)
        assert (code, "Invalid argument" in err) == (1, True), (words, err)
    done = place.call(*place.command("exec", "web", "cat", "/proc/1/oom_score_adj"))
    assert done.stdout != "77\n"
    assert place.call(*place.command("stop", "-t", "0", "web")).returncode == 0
    assert end(started)[0] == 137


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[InsidePlace]:
    """A root, beside which is what nobody may get at."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("secret")
    (tmp_path / "secret" / "file").chmod(0o600)
    (tmp_path / "root" / "secret").mkdir(parents=True)
    (tmp_path / "root" / "secret" / "file").write_text("ours")
    descriptor = os.open(tmp_path / "root", os.O_PATH)
    yield InsidePlace(descriptor)
    os.close(descriptor)
    assert [path.name for path in (tmp_path / "secret").iterdir()] == ["file"]
    status = (tmp_path / "secret" / "file").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
    assert (tmp_path / "secret" / "file").read_text() == "secret"


@pytest.mark.parametrize("target", ["../secret", "../../../../../secret", "/secret"])
def test_symlinks_lead_nowhere_outside(inside: InsidePlace, tmp_path: Path, target: str) -> None:
    """Whatever they are in the middle or at the end of."""
    root = tmp_path / "root"
    (root / "d").mkdir()
    (root / "d" / "link").symlink_to(target)
    (root / "d" / "last").symlink_to(f"{target}/file")
    (tmp_path / "new").write_text("new")
    (tmp_path / "new").chmod(0o755)
    os.chown(tmp_path / "new", 3, 3)
    for path in ("/d/link/file", "/d/last"):
        assert b"".join(inside.pieces(path)) == b"ours"
    local = LocalPlace()
    before = os.umask(0o077)
    try:
        Copier(local, inside).copy(str(tmp_path / "new"), "/d/link/made", recursive=False)
        inside.make_directory("/d/link/directory", 0o750)
    finally:
        os.umask(before)
    assert (root / "secret" / "made").read_text() == "new"
    assert [stat.S_IMODE((root / "secret" / name).stat().st_mode) for name in ("made", "directory")] == [0o755, 0o750]
    inside.make_symlink("x", "/d/link/symlink")
    assert sorted(inside.names("/d/link")) == ["directory", "file", "made", "symlink"]
    Copier(local, inside).copy(str(tmp_path / "new"), "/d/last", recursive=False)
    assert (root / "secret" / "file").read_text() == "new"
    # What is at the end is not followed where its owner and mode are set.
    found = local.look(str(tmp_path / "new"))
    assert found is not None
    inside.preserve("/d/last", found, {b"user.a": b"b"})
    assert (root / "d" / "last").lstat().st_uid == 3
    assert (root / "secret" / "file").stat().st_uid == 0


def test_names_that_change_meanwhile_lead_nowhere_outside(inside: InsidePlace, tmp_path: Path) -> None:
    """A directory becomes a symlink, and a file a FIFO, after they were looked at."""
    root = tmp_path / "root"
    (root / "d").mkdir()
    (root / "d" / "file").write_text("one")
    assert inside.look("/d/file") is not None
    (root / "d" / "file").unlink()
    os.mkfifo(root / "d" / "file")
    for write in (False, True):
        with pytest.raises(OSError, match="Invalid argument"):
            inside.write("/d/file", 0o644, iter([b"x"])) if write else list(inside.pieces("/d/file"))
    (root / "d" / "file").unlink()
    (root / "d").rmdir()
    (root / "d").symlink_to(tmp_path / "secret")
    with pytest.raises(FileNotFoundError):
        list(inside.pieces("/d/file"))
    with pytest.raises(FileNotFoundError):
        inside.write("/d/file", 0o644, iter([b"x"]))


def _id(name: str) -> str | None:
    found = find_running(name)
    return None if found is None else found.id


def test_which_names_are_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that run, by name, id, or as much of an id as `ps` shows: all else may be an image."""
    monkeypatch.setattr(roots, "containers_directory", lambda: tmp_path)
    ids = {"web": "0123456789abcdef", "": "0123456789abcabc", "late": "89ab89ab89ab89ab"}
    helds = {name: hold(tmp_path, identity, name) for name, identity in ids.items()}
    try:
        for record in list_containers(tmp_path):
            if record.name != "late":
                helds[record.name].write(replace(record, status=RUNNING))
        assert [_id(name) for name in ("web", ids["web"], ids["web"][:14])] == [ids["web"]] * 3
        assert _id(ids[""][:15]) == ids[""]
        assert [_id(name) for name in (ids["web"][:11], "late", ids["late"], "web:1", "we", "./web")] == [None] * 6
        with pytest.raises(InvalidError, match="the ids of 2 containers begin so"):
            find_running("0123456789ab")
    finally:
        for held in helds.values():
            held.close()
