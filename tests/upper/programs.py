"""Random programs in a mounted container, and random images for them."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from pagepool.image import Kind
from pagepool.linux import call
from tests.support.trees import TreeBuilder

_AT_FDCWD = -100
_EXCHANGE = 2
_NAMES = ("a", "b", "c", "d", "e", "né", "with space")


def random_image(chance: random.Random) -> TreeBuilder:
    """A few directories, and all kinds of files in them."""
    builder = TreeBuilder()
    directories = [""]
    for _ in range(chance.randint(2, 8)):
        path = f"{chance.choice(directories)}/{chance.choice(_NAMES)}"
        if path.count("/") < 5 and path not in directories:
            builder.directory(path, chance.choice((0o755, 0o1777, 0o700)), **_owner(chance))
            directories.append(path)
    taken = set(directories)
    files = []
    for _ in range(chance.randint(3, 20)):
        path = f"{chance.choice(directories)}/{chance.choice(_NAMES)}{chance.choice(('', '1', '2'))}"
        if path in taken:
            continue
        taken.add(path)
        kind = chance.random()
        if kind < 0.6:
            data = bytes([chance.randrange(256)]) * chance.choice((0, 1, 100, 4096, 9000, 70_000))
            files.append(builder.file(path, data, chance.choice((0o644, 0o4755, 0o600)), **_owner(chance)))
        elif kind < 0.75 and files:
            builder.add(path, chance.choice(files))
        elif kind < 0.9:
            builder.symlink(path, chance.choice(("a", "/a/b", "../c", "nowhere")), **_owner(chance))
        elif kind < 0.95:
            builder.device(path, Kind.FIFO, (0, 0), **_owner(chance))
        else:
            builder.device(path, Kind.CHAR, (1, 3), **_owner(chance))
    return builder


def _owner(chance: random.Random) -> dict[str, Any]:
    xattrs = {b"trusted.mine": b"t"} if chance.random() < 0.2 else {}
    return {
        "uid": chance.choice((0, 1000)),
        "gid": chance.choice((0, 1000)),
        "mtime_ns": chance.randrange(10**18, 2 * 10**18),
        "xattrs": xattrs,
    }


class Program:
    """Does things at random to a root file system. Those that the kernel refuses change nothing.

    Args:
        root: where it is mounted.
    """

    def __init__(self, root: Path, chance: random.Random) -> None:
        self._root = root
        self._chance = chance

    def run(self, steps: int) -> None:
        """Do so many things."""
        actions = [
            *[self._create, self._write, self._write, self._change_metadata, self._change_metadata, self._remove],
            *[self._rename, self._rename, self._rename, self._exchange, self._link, self._link, self._attribute],
            *[self._make_directory, self._make_special, self._remove_tree, self._replace],
        ]
        for _ in range(steps):
            with suppress(OSError):
                self._chance.choice(actions)()

    def _paths(self) -> list[Path]:
        return sorted(self._root.rglob("*"))

    def _any(self) -> Path:
        return self._chance.choice(self._paths() or [self._root / "none"])

    def _file(self) -> Path:
        found = [path for path in self._paths() if stat.S_ISREG(path.lstat().st_mode)]
        return self._chance.choice(found or [self._root / "none"])

    def _directory(self) -> Path:
        found = [path for path in self._paths() if stat.S_ISDIR(path.lstat().st_mode)]
        return self._chance.choice([self._root, *found])

    def _new(self) -> Path:
        return self._directory() / f"{self._chance.choice(_NAMES)}{self._chance.choice(('', '1', '2'))}"

    def _data(self) -> bytes:
        return self._chance.randbytes(self._chance.choice((1, 10, 5000, 20_000)))

    def _create(self) -> None:
        with self._new().open("xb") as file:
            file.write(self._data())

    def _write(self) -> None:
        with self._file().open("r+b") as file:
            file.seek(self._chance.randrange(10_000))
            if self._chance.random() < 0.3:
                file.truncate()
            else:
                file.write(self._data())

    def _change_metadata(self) -> None:
        path = self._any() if self._chance.random() < 0.9 else self._root
        what = self._chance.randrange(3)
        if what == 0:
            path.chmod(self._chance.choice((0o600, 0o755, 0o2711, 0o4755)), follow_symlinks=path.is_symlink())
        elif what == 1:
            os.chown(path, self._chance.choice((0, 7)), self._chance.choice((0, 8)), follow_symlinks=False)
        else:
            time = self._chance.randrange(2 * 10**18)
            os.utime(path, ns=(time, time), follow_symlinks=False)

    def _attribute(self) -> None:
        path, name = self._any(), self._chance.choice(("user.a", "trusted.b"))
        if self._chance.random() < 0.7:
            os.setxattr(path, name, self._data()[:20], follow_symlinks=False)
        else:
            os.removexattr(path, name, follow_symlinks=False)

    def _remove(self) -> None:
        path = self._any()
        if stat.S_ISDIR(path.lstat().st_mode):
            path.rmdir()
        else:
            path.unlink()

    def _remove_tree(self) -> None:
        if self._chance.random() < 0.5:
            shutil.rmtree(self._any())

    def _replace(self) -> None:
        """A directory instead of another one."""
        path = self._directory()
        if path != self._root:
            shutil.rmtree(path)
            path.mkdir()
            (path / self._chance.choice(_NAMES)).write_bytes(self._data())

    def _rename(self) -> None:
        path = self._any()
        path.rename(self._chance.choice((self._new(), self._any(), path.with_name(self._chance.choice(_NAMES)))))

    def _exchange(self) -> None:
        one, two = os.fsencode(self._any()), os.fsencode(self._any())
        call("renameat2", _AT_FDCWD, one, _AT_FDCWD, two, ctypes.c_uint(_EXCHANGE))

    def _link(self) -> None:
        os.link(self._any(), self._new(), follow_symlinks=False)

    def _make_directory(self) -> None:
        self._new().mkdir()

    def _make_special(self) -> None:
        what = self._chance.randrange(3)
        if what == 0:
            self._new().symlink_to("target")
        elif what == 1:
            os.mkfifo(self._new())
        else:
            os.mknod(self._new(), stat.S_IFCHR | 0o600, os.makedev(1, 5))
