"""What several processes, other users and mappings see of a read-write mount, beside a plain directory."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pagepool.mount import MountOptions, serve_in_background, unmount
from tests.mount.actions import link_descriptor
from tests.mount.overlays import BIG, open_overlay

_NOBODY = 65534
_FS_IOC_GETFLAGS = 0x80086601
_TIMEOUT_S = 60.0


@pytest.fixture
def upper(point: Path, records: Path, tmp_path: Path) -> Iterator[Path]:
    """A mount of an overlay over a small image, served by another process; the directory of the overlay."""
    directory = tmp_path / "upper"
    serve_in_background(partial(open_overlay, directory), point, options=MountOptions(dev=True), directory=records)
    yield directory
    unmount(point, directory=records)


@pytest.fixture(params=["mount", "plain"])
def root(request: pytest.FixtureRequest, public: Path) -> Path:
    """The mount, and a plain directory beside it: what is expected of one must be true of the other."""
    if request.param == "mount":
        request.getfixturevalue("upper")
        return Path(request.getfixturevalue("point"))
    plain = public / "plain"
    plain.mkdir(mode=0o755)
    return plain


_AS_NOBODY = f"import os, sys; os.setgroups([]); os.setresgid(*[{_NOBODY}] * 3); os.setresuid(*[{_NOBODY}] * 3)\n"


def _python(program: str, *arguments: object, nobody: bool = False) -> str:
    """Run a program in another process, which may do what this one must not: map files that it serves, or be a user."""
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY * nobody + program, *map(str, arguments)],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_MAP = """
import mmap, os, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
    assert shared[:4] == b"0123", shared[:4]
    shared[5000:5005] = b"first"
    assert os.pread(file.fileno(), 5, 5000) == b"first"
    os.pwrite(file.fileno(), b"second", 9000)
    assert shared[9000:9006] == b"second"
    shared.flush()
    shared[12000:12005] = b"third"
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as private:
    private[0:4] = b"mine"
"""


def test_mappings(root: Path) -> None:
    """A shared mapping and read and write see each other; what is written through it stays."""
    file = root / "mapped"
    file.write_bytes(b"0123456789" * 2000)
    _python(_MAP, file)
    data = file.read_bytes()
    assert (data[5000:5005], data[9000:9006], data[12000:12005], data[:4]) == (b"first", b"second", b"third", b"0123")
    assert len(data) == 20_000


def test_a_mapped_write_into_a_file_of_the_image(upper: Path, point: Path, records: Path) -> None:
    """It is in the overlay afterwards, and nothing else of the file is changed."""
    program = "import mmap, sys\nwith open(sys.argv[1], 'r+b') as f, mmap.mmap(f.fileno(), 0) as m: m[70000] = 255"
    _python(program, point / "usr/bin/big")
    unmount(point, directory=records)
    serve_in_background(partial(open_overlay, upper), point, directory=records)
    assert (point / "usr/bin/big").read_bytes() == BIG[:70_000] + b"\xff" + BIG[70_001:]


_LOCKS = """
import errno, fcntl, os, subprocess, sys
other = '''
import fcntl, struct, sys
with open(sys.argv[1], "r+b") as file:
    try:
        if sys.argv[2] == "flock":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, int(sys.argv[3]))
    except BlockingIOError:
        print("locked")
    else:
        print("free")
'''
def ask(*words):
    return subprocess.run([sys.executable, "-c", other, sys.argv[1], *words], capture_output=True, text=True).stdout
with open(sys.argv[1], "r+b") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    assert ask("flock") == "locked\\n"
    fcntl.flock(file, fcntl.LOCK_UN)
    assert ask("flock") == "free\\n"
    fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
    assert ask("fcntl", "5") == "locked\\n"
    assert ask("fcntl", "10") == "free\\n"
    fcntl.lockf(file, fcntl.LOCK_UN)
    assert ask("fcntl", "5") == "free\\n"
"""


def test_locks(root: Path) -> None:
    """flock and fcntl locks hold between processes."""
    (root / "locked").write_bytes(bytes(100))
    _python(_LOCKS, root / "locked")


@pytest.mark.parametrize(("mode", "kept"), [(0o6777, 0o777), (0o4767, 0o767), (0o2777, 0o777)])
def test_a_write_takes_privileges(root: Path, mode: int, kept: int) -> None:
    """By somebody else: setuid goes, setgid too where the group may execute, and capabilities. Root keeps them."""
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    changes = (
        "open(sys.argv[1], 'r+b').write(b'x')",
        "os.truncate(sys.argv[1], 3)",
        "open(sys.argv[1], 'wb').close()",
        "os.posix_fallocate(os.open(sys.argv[1], os.O_RDWR), 0, 10000)",
    )
    for change in changes:
        file = root / "privileged"
        file.write_bytes(b"content")
        file.chmod(mode)
        _python(f"import os, sys, warnings\nwarnings.simplefilter('ignore')\n{change}", file)
        assert file.stat().st_mode & 0o7777 == mode, change
        os.setxattr(file, "security.capability", capability)
        _python(f"import os, sys, warnings\nwarnings.simplefilter('ignore')\n{change}", file, nobody=True)
        assert file.stat().st_mode & 0o7777 == kept, change
        assert "security.capability" not in os.listxattr(file), change


def test_a_change_of_owner_takes_privileges(root: Path) -> None:
    """Whoever makes it, and though it changes nothing; of directories it takes none."""
    for uid, gid in ((7, -1), (-1, 7), (-1, -1)):
        (root / "file").write_bytes(b"")
        (root / "file").chmod(0o6755)
        os.chown(root / "file", uid, gid)
        assert (root / "file").stat().st_mode & 0o7777 == 0o755
    (root / "directory").mkdir()
    (root / "directory").chmod(0o6755)
    os.chown(root / "directory", 7, 7)
    assert (root / "directory").stat().st_mode & 0o7777 == 0o6755


def test_permissions_hold(root: Path) -> None:
    """The kernel checks them: by owner, by group, by sticky directories."""
    (root / "private").write_bytes(b"secret")
    (root / "private").chmod(0o640)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    (root / "sticky/mine").write_bytes(b"")
    program = """
import os, sys
root = sys.argv[1]
for attempt, name in ((open, "/private"), (os.unlink, "/sticky/mine"), (os.mkdir, "/directory")):
    try:
        attempt(root + name)
    except PermissionError:
        continue
    raise SystemExit("it was allowed")
open(root + "/sticky/theirs", "w").close()
status = os.stat(root + "/sticky/theirs")
assert (status.st_uid, status.st_gid) == (65534, 65534), status
"""
    _python(program, root, nobody=True)


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_NOBODY_READS = _acl((1, 6, 2**32 - 1), (2, 4, _NOBODY), (4, 0, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1))
_ONLY_A_MODE = _acl((1, 7, 2**32 - 1), (4, 5, 2**32 - 1), (32, 1, 2**32 - 1))


@pytest.mark.usefixtures("upper")
def test_access_lists(point: Path, public: Path) -> None:
    """They are kept, follow the mode, are handed on to what is made in a directory, and hold."""
    plain = public / "plain"
    plain.mkdir(mode=0o755)
    shown = []
    for root in (point, plain):
        steps: list[object] = []
        file, directory = root / "file", root / "directory"
        file.write_bytes(b"readable")

        def note(path: Path, steps: list[object] = steps) -> None:
            names = sorted(os.listxattr(path))
            steps.append((path.name, oct(path.stat().st_mode), [(name, os.getxattr(path, name)) for name in names]))

        os.setxattr(file, "system.posix_acl_access", _NOBODY_READS)
        note(file)
        _python("import sys; assert open(sys.argv[1]).read() == 'readable'", file, nobody=True)
        file.chmod(0o600)
        note(file)
        file.chmod(0o664)
        note(file)
        os.setxattr(file, "system.posix_acl_access", _ONLY_A_MODE)
        note(file)
        directory.mkdir()
        os.setxattr(directory, "system.posix_acl_default", _NOBODY_READS)
        note(directory)
        old = os.umask(0o077)
        (directory / "made").write_bytes(b"")
        (directory / "below").mkdir()
        (directory / "link").symlink_to("made")
        os.umask(old)
        note(directory / "made")
        note(directory / "below")
        os.removexattr(directory, "system.posix_acl_default")
        os.setxattr(directory, "system.posix_acl_access", _NOBODY_READS)
        os.removexattr(directory, "system.posix_acl_access")
        note(directory)
        shown.append(steps)
    assert shown[0] == shown[1]


_WRITER = """
import os, sys
root, number = sys.argv[1], int(sys.argv[2])
own = f"{root}/own-{number}"
os.mkdir(own)
log = os.open(f"{root}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for turn in range(100):
    path = f"{own}/{turn}"
    with open(path, "wb") as file:
        file.write(bytes([number]) * (turn * 61))
    if turn % 3 == 0:
        os.rename(path, f"{root}/shared")
    elif turn % 3 == 1:
        os.link(path, path + "-linked")
    os.write(log, b"%d-%d\\n" % (number, turn))
    os.listdir(root)
"""


def test_many_processes_at_once(point: Path, upper: Path, records: Path) -> None:
    """Each finds what it wrote; lines that are appended to one file are all there, whole."""
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, point, str(number)], cwd="/") for number in range(8)]
    assert [writer.wait(_TIMEOUT_S) for writer in writers] == [0] * 8
    for _ in range(2):
        lines = (point / "log").read_text().splitlines()
        assert sorted(lines) == sorted(f"{number}-{turn}" for number in range(8) for turn in range(100))
        for number in range(8):
            for turn in range(100):
                path = point / f"own-{number}" / str(turn)
                assert path.exists() == bool(turn % 3)
                if turn % 3:
                    assert path.read_bytes() == bytes([number]) * (turn * 61)
                    assert path.stat().st_nlink == 1 + (turn % 3 == 1)
        unmount(point, directory=records)
        serve_in_background(partial(open_overlay, upper), point, directory=records)


@pytest.mark.usefixtures("upper")
def test_programs_run_from_the_mount(point: Path) -> None:
    """A program is executed, by its mode, and a script by its interpreter."""
    tool = point / "usr/bin/echo"
    tool.write_bytes(Path("/bin/echo").read_bytes())
    with pytest.raises(PermissionError):
        subprocess.run([tool], check=True, cwd="/")
    tool.chmod(0o755)
    assert subprocess.run([tool, "hello"], capture_output=True, check=True, cwd=point).stdout == b"hello\n"
    script = point / "script"
    script.write_text(f"#!{tool} first\n")
    script.chmod(0o755)
    assert subprocess.run([script], capture_output=True, check=True).stdout == f"first {script}\n".encode()


@pytest.mark.usefixtures("upper")
def test_what_is_not_done(point: Path) -> None:
    """It is refused with an error that programs know, and they do without."""
    (point / "file").write_bytes(b"copied")
    with (point / "file").open("rb") as file:
        with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
            fcntl.ioctl(file, _FS_IOC_GETFLAGS, bytes(8))
        with (point / "copy").open("wb") as copy:
            assert os.copy_file_range(file.fileno(), copy.fileno(), 100) == 6
    assert (point / "copy").read_bytes() == b"copied"


def test_files_without_a_name(root: Path) -> None:
    """O_TMPFILE: what was written is there once the file gets a name, and gone if it never does."""
    (root / "shared").mkdir()
    os.chown(root / "shared", 0, 70_000)
    (root / "shared").chmod(0o2775)
    descriptor = os.open(root / "shared", os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(descriptor, b"written before it had a name")
    found = os.fstat(descriptor)
    assert (found.st_nlink, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 70_000, 0o640)
    assert list((root / "shared").iterdir()) == []
    link_descriptor(descriptor, root / "shared/named")
    os.pwrite(descriptor, b"W", 0)
    os.close(descriptor)
    assert (root / "shared/named").read_bytes() == b"Written before it had a name"
    assert (root / "shared/named").stat().st_nlink == 1
    alone = os.open(root, os.O_TMPFILE | os.O_WRONLY | os.O_EXCL, 0o600)
    with pytest.raises(FileNotFoundError):
        link_descriptor(alone, root / "never")
    os.close(alone)
    (root / "shared/named").unlink()
    (root / "shared").rmdir()


def test_a_file_without_a_name_is_gone_with_its_server(upper: Path, point: Path, records: Path) -> None:
    """Whoever opens the overlay next finds nothing of it, and what got a name whole."""
    descriptor = os.open(point, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(descriptor, b"lost")
    other = os.open(point, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(other, b"kept")
    link_descriptor(other, point / "kept")
    os.close(other)
    os.close(descriptor)
    unmount(point, directory=records)
    serve_in_background(partial(open_overlay, upper), point, directory=records)
    assert (point / "kept").read_bytes() == b"kept"
    assert os.statvfs(point).f_blocks


def test_a_rename_that_leaves_a_whiteout(root: Path) -> None:
    """RENAME_WHITEOUT: a character device 0:0 without permissions is where the file was."""
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    (root / "file").write_bytes(b"moved")
    names = os.fsencode(root / "file"), os.fsencode(root / "other")
    assert rename(-100, names[0], -100, names[1], 4 | 1) == 0
    found = (root / "file").lstat()
    assert (found.st_mode, found.st_rdev, found.st_nlink) == (stat.S_IFCHR, 0, 1)
    assert (root / "other").read_bytes() == b"moved"
    assert rename(-100, names[0], -100, names[1], 4 | 2) == -1
    assert ctypes.get_errno() == errno.EINVAL


@pytest.mark.usefixtures("upper")
def test_it_can_be_the_upper_directory_of_an_overlayfs(point: Path, public: Path) -> None:
    """The kernel's overlayfs keeps its changes in a mount of ours: it needs both, and trusted attributes."""
    lower, merged = public / "lower", public / "merged"
    for directory in (lower, merged, point / "changes", point / "work"):
        directory.mkdir()
    (lower / "here").write_bytes(b"of the lower directory")
    (lower / "gone").write_bytes(b"to be removed")
    (lower / "directory").mkdir()
    options = f"lowerdir={lower},upperdir={point}/changes,workdir={point}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        (merged / "here").write_bytes(b"changed")
        (merged / "gone").unlink()
        (merged / "directory").rmdir()
        (merged / "directory").mkdir()
        (merged / "new").write_bytes(b"new")
        (merged / "new").rename(merged / "newer")
        assert sorted(path.name for path in merged.iterdir()) == ["directory", "here", "newer"]
        assert (merged / "here").read_bytes() == b"changed"
    finally:
        subprocess.run(["umount", merged], check=True)
    assert (point / "changes/here").read_bytes() == b"changed"
    assert stat.S_ISCHR((point / "changes/gone").lstat().st_mode)
