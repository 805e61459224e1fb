"""Records which files real programs read out of real images, as sessions of object numbers. Root, strace, umoci.

    python -m tests.bench.readtrace OUTPUT [--dir DIR]

Unpacks test images, runs programs of each by chroot under strace in namespaces of their own (no network, nothing left
mounted), and notes every regular file that was opened or executed, in order. A file is its content: the same object
number stands for equal bytes in whatever image. What is written is one session for each program, and each image's
files in the order tar reads them. How sessions follow each other is up to `tests.bench.eviction`.

The file: zstd of JSON, ``{"sizes": [bytes of each object], "sessions": {name: [numbers]}}``; numbers are differences to
the one before, which compresses better.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard

from pagepool.digest import blake3_raw
from tests.support import images

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_START = "import sys, {}; print(sys.version)"
_POSTGRES = (
    "mkdir -p /tmp/pg && chown postgres /tmp/pg && cd /tmp && su postgres -c '"
    "/usr/lib/postgresql/15/bin/initdb -D /tmp/pg/data >/dev/null && "
    'echo "create table t (a int); insert into t values (1); select count(*) from t" | '
    "/usr/lib/postgresql/15/bin/postgres --single -D /tmp/pg/data postgres'"
)
_DEBIAN = {
    "shell": "for i in 1 2 3; do ls -l /usr/bin; date; id; done",
    "dpkg": "dpkg -l; dpkg -S /bin/ls /usr/bin/perl; dpkg -L coreutils",
    "apt": "apt-cache policy; apt list --installed",
    "perl": "perl -MPOSIX -MFile::Find -MData::Dumper -e 'find(sub {}, q(/etc)); print Dumper(1)'",
    "find": "find / -xdev -name '*.so*' | sort | head -50; ldconfig -p",
    "grep-etc": "grep -r root /etc",
    "grep-doc": "grep -rl Debian /usr/share/doc | wc -l",
}
PROGRAMS: Mapping[str, Mapping[str, str]] = {
    "debian-old": _DEBIAN,
    "debian-new": _DEBIAN,
    "python-new": {
        "start": f"python3 -c '{_START.format('json')}'",
        "web": f"python3 -c '{_START.format('http.server, asyncio, ssl, sqlite3, urllib.request, email.mime.text')}'",
        "unittest": f"python3 -c '{_START.format('unittest.mock, argparse, logging.config, xml.dom.minidom')}'",
        "grep": "grep -rl import /usr/lib/python3.11 | wc -l",
    },
    "numpy-old": {"start": f"python3 -c '{_START.format('numpy, numpy.linalg, numpy.fft, numpy.random')}'"},
    "numpy-new": {
        "start": f"python3 -c '{_START.format('numpy, numpy.linalg, numpy.fft, numpy.random')}'",
        "test": "python3 -c 'import numpy.testing, numpy.ma, numpy.polynomial, json; print(numpy.ones(3).sum())'",
    },
    "nginx-old": {"start": "nginx -T; nginx & sleep 0.3; kill %1; nginx -s stop; true"},
    "nginx-new": {"start": "nginx -T; nginx & sleep 0.3; kill %1; nginx -s stop; true"},
    "redis-new": {"start": "redis-server --port 0 --unixsocket /tmp/r & sleep 0.3; redis-cli -s /tmp/r info; kill %1"},
    "postgres-new": {"start": _POSTGRES, "psql": "/usr/lib/postgresql/15/bin/psql --version; pg_lsclusters"},
    "node-new": {
        "start": "node -e 'console.log(process.version)'",
        "http": 'node -e \'require("http"); require("crypto"); require("zlib"); console.log(1)\'',
    },
}
_PRIVATELY = """
set -e
mount --rbind /dev "$0/dev"
mount -t proc proc "$0/proc"
mount -t tmpfs tmpfs "$0/tmp"
ip link set lo up 2>/dev/null || true
exec timeout --kill-after=5 60 strace -f -qq -y -s 1 -o "$1" -e trace=open,openat,execve \\
    chroot "$0" /bin/bash -mc "$2"
"""
_OPENED = re.compile(r"(?:open|openat)\(.*\) = \d+<([^>]+)>$")
_EXECUTED = re.compile(r'execve\("(/[^"]*)".*\) = 0$')
_LOADER = "/lib64/ld-linux-x86-64.so.2"
_MOST_LINKS = 40


@dataclass(slots=True)
class Recorder:
    """Contents by number, and sessions over them."""

    sizes: list[int] = field(default_factory=list)
    sessions: dict[str, list[int]] = field(default_factory=dict)
    _numbers: dict[bytes, int] = field(default_factory=dict)
    _known: dict[tuple[int, int], int | None] = field(default_factory=dict)

    def number(self, path: Path) -> int | None:
        """The object that a file's content is; None if it has none, or is no regular file."""
        if path.is_symlink() or not path.is_file():
            return None
        status = path.stat()
        key = status.st_dev, status.st_ino
        if key not in self._known:
            data = path.read_bytes()
            if data and blake3_raw(data) not in self._numbers:
                self._numbers[blake3_raw(data)] = len(self.sizes)
                self.sizes.append(len(data))
            self._known[key] = self._numbers[blake3_raw(data)] if data else None
        return self._known[key]

    def session(self, name: str, paths: Iterator[Path]) -> None:
        """Take down a session. The same file twice in a row is one read."""
        numbers = [number for path in paths if (number := self.number(path)) is not None]
        self.sessions[name] = [number for number, _ in itertools.groupby(numbers)]
        print(f"{name}: {len(self.sessions[name])} reads", flush=True)

    def encode(self) -> bytes:
        """The file's bytes."""
        sessions = {name: _differences(numbers) for name, numbers in self.sessions.items()}
        text = json.dumps({"sizes": self.sizes, "sessions": sessions}, separators=(",", ":"))
        return zstandard.ZstdCompressor(level=19).compress(text.encode())


def _differences(numbers: Sequence[int]) -> list[int]:
    return [number - before for number, before in zip(numbers, [0, *numbers], strict=False)]


def run_program(root: Path, command: str, log: Path) -> Iterator[Path]:
    """Run a command in an unpacked image.

    Returns:
        the files below the root that it and its children opened or executed, in order.
    """
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--propagation", "private"]
    subprocess.run([*unshare, "sh", "-c", _PRIVATELY, str(root), str(log), command], capture_output=True, check=False)
    prefix = f"{root}/"
    for line in log.read_text(errors="replace").splitlines():
        if (found := _OPENED.search(line)) and found[1].startswith(prefix):
            yield Path(found[1])
        elif found := _EXECUTED.search(line):
            yield inside(root, found[1])
            yield inside(root, _LOADER)


def inside(root: Path, name: str) -> Path:
    """The file that an absolute path leads to for a program whose root is elsewhere."""
    found, rest = root, [part for part in name.split("/") if part]
    for _ in range(_MOST_LINKS):
        while rest and not (found / rest[0]).is_symlink():
            found /= rest.pop(0)
        if not rest:
            break
        target = str((found / rest.pop(0)).readlink())
        rest = [part for part in target.split("/") if part] + rest
        found = root if target.startswith("/") else found
    return found


def scan(root: Path) -> Iterator[Path]:
    """All files, in the order in which tar and grep -r read them."""
    for directory, _, names in os.walk(root):
        yield from (Path(directory) / name for name in names)


def record(work: Path) -> Recorder:
    """Unpack the images and run everything."""
    recorder = Recorder()
    layouts = images.build(PROGRAMS, images.default_cache_dir())
    roots = {}
    for name, layout in layouts.items():
        bundle = work / name
        subprocess.run(["umoci", "unpack", "--image", f"{layout}:latest", str(bundle)], check=True, capture_output=True)
        roots[name] = bundle / "rootfs"
        # Before anything is changed by being run.
        recorder.session(f"{name}/scan", scan(roots[name]))
    for name, programs in PROGRAMS.items():
        for program, command in programs.items():
            recorder.session(f"{name}/{program}", run_program(roots[name], command, work / "log"))
    return recorder


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path)
    parser.add_argument("--dir", type=Path, help="where to unpack, a few GB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as work:
        data = record(Path(work)).encode()
    arguments.output.write_bytes(data)
    print(f"{arguments.output}: {len(data)} bytes")


if __name__ == "__main__":
    main()
