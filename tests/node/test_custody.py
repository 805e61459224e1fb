"""Eviction and scrubbing below real overlays: nothing in use breaks, and what is in use is counted."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.node.forgetting import find_overlays, forget_unused, reconfigure
from pagepool.node.scrubbing import NodeScrub
from pagepool.pool import custody
from tests.node.scripted import ScriptedNode, scripted_node
from tests.pool.helpers import thing

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILES = 120
_SIZE = 64 << 10
_READER = """
import mmap, os, sys
from blake3 import blake3
at, turns, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
wanted = dict(line.split() for line in sys.stdin.read().splitlines())
names, kept = sorted(wanted), []
for turn in range(turns):
    for place in range(len(names)):
        name = names[(place * 7 + seed + turn) % len(names)]
        with open(f"{at}/{name}", "rb") as file:
            data = file.read()
            if (place + seed) % 17 == 0 and len(kept) < 12:
                kept.append((name, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)))
        if blake3(data).hexdigest() != wanted[name]:
            sys.exit(f"{name} is wrong")
for name, mapped in kept:
    if blake3(mapped).hexdigest() != wanted[name]:
        sys.exit(f"the mapping of {name} is wrong")
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[ScriptedNode]:
    """With room for a quarter of its tree; overlays are not asked to forget anything."""
    with scripted_node(tmp_path, _FILES * _SIZE // 4) as node:
        yield node


def fill(node: ScriptedNode) -> None:
    """A tree of files."""
    for number in range(_FILES):
        node.add(f"f{number}", thing(number, _SIZE - number))


def read_all(node: ScriptedNode, overlays: list[Path], turns: int) -> None:
    """Have a process for each overlay read everything, again and again, and map some of it."""
    wanted = "".join(f"{name} {one.digest.hex()}\n" for name, one in node.names.items())
    with ExitStack() as stack:
        readers = []
        for number, at in enumerate(overlays):
            command = [sys.executable, "-c", _READER, str(at), str(turns), str(number)]
            pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
            reader = stack.enter_context(subprocess.Popen(command, text=True, **pipes))  # type: ignore[call-overload]
            stack.callback(reader.kill)
            assert reader.stdin is not None
            reader.stdin.write(wanted)
            reader.stdin.close()
            readers.append(reader)
        for reader in readers:
            assert reader.wait(timeout=120) == 0, (reader.stderr.read(), node.refusals)


@pytest.mark.parametrize("forgetting", [False, True])
def test_eviction_below_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, forgetting: bool) -> None:
    """A quarter of the tree fits. Every read is right, without an error, and what is in use is in the account."""
    monkeypatch.setattr(custody, "_RELEASE_S", 0.1)
    budget = _FILES * _SIZE // 4
    with scripted_node(tmp_path, budget, forgetting=forgetting) as node:
        fill(node)
        overlays = []
        for turn in range(3):
            overlays += [node.overlay(f"c{turn}{number}") for number in range(2)]
            read_all(node, overlays, 3)
            node.later_s += 6.0
            last = thing(1000 + turn, _SIZE)
            assert node.pool.put(last.digest, last.data)
            stats = node.pool.stats()
            assert stats.evictions > 0
            assert stats.used <= max(budget, stats.pinned_bytes + budget // custody.FLOOR_SHARE)
        node.custody.probe(everything=True)
        assert node.custody.pinned == node.pool.stats().pinned_bytes
        for at in overlays:
            node.unmount(at)
        node.custody.probe(everything=True)
        if not node.is_mounted():  # also where somebody has made a copy of this mount namespace meanwhile
            stats = node.pool.stats()
            assert stats.pinned_bytes == 0
            assert stats.used <= budget


def test_what_is_mapped_is_pinned_and_counted(node: ScriptedNode) -> None:
    """Bytes on the disk and bytes in the account agree: a file that lost its names, and that a mapping keeps."""
    fill(node)
    at = node.overlay("one")
    with (at / "f0").open("rb") as file:
        assert file.read(10) == node.names["f0"].data[:10]
        node.pool.remove(node.names["f0"].digest)
        assert not node.second("f0").exists()
        assert node.pool.stats().pinned_bytes == _SIZE
        reconfigure(at)
        node.custody.probe(everything=True)
        assert node.pool.stats().pinned_bytes == _SIZE
        assert file.read() == node.names["f0"].data[10:]
    node.custody.probe(everything=True)
    assert node.pool.stats().pinned_bytes == _SIZE  # closed, and remembered
    reconfigure(at)
    node.custody.probe(everything=True)
    assert node.pool.stats().pinned_bytes == 0
    assert (at / "f0").read_bytes() == node.names["f0"].data
    assert node.brought.count(node.names["f0"].digest) == 2


def test_forgetting_touches_only_ours(node: ScriptedNode) -> None:
    """Overlays are found by their source, in whichever mount namespace; also one that something else covers."""
    fill(node)
    at = node.overlay("one")
    paths = {os.path.realpath(path) for _, path in find_overlays(node.source.__eq__)}
    assert str(at) in paths
    assert node.forget() == 1
    assert forget_unused(lambda _source: False) == 0
    (at / "f1").read_bytes()
    subprocess.run(["mount", "-t", "tmpfs", "test", str(at)], check=True)
    try:
        assert node.forget() == 0
    finally:
        subprocess.run(["umount", str(at)], check=True)
    assert (at / "f1").read_bytes() == node.names["f1"].data


def test_forgetting_changes_nothing(node: ScriptedNode) -> None:
    """What was written is there, what is open goes on, and who could write still can; who could not cannot."""
    fill(node)
    written, read_only = node.overlay("written", upper=True), node.overlay("read")
    options = [line.split(" ", 5)[5] for line in mounts_of(node)]
    with (written / "f0").open("r+b", buffering=0) as file:
        file.write(b"changed")
        (written / "new").write_text("new")
        assert node.forget() == 2
        file.write(b" more")
    assert node.forget() == 2
    assert (written / "f0").read_bytes() == b"changed more" + node.names["f0"].data[12:]
    assert (written / "new").read_text() == "new"
    (written / "other").touch()
    assert (read_only / "f0").read_bytes() == node.names["f0"].data
    with pytest.raises(OSError, match="Read-only"):
        (read_only / "other").touch()
    assert [line.split(" ", 5)[5] for line in mounts_of(node)] == options


def mounts_of(node: ScriptedNode) -> list[str]:
    """The overlays of a node, as the kernel describes them."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if f" {node.root}/at/" in line]


def damage(path: Path) -> None:
    """Flip bits of a file at rest, as a disk does: all that the kernel remembers of it is dropped."""
    path.chmod(0o644)
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"damaged")
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


class TestScrub:
    """An object that was damaged at rest."""

    def test_is_gone_from_both_names_and_fetched_by_the_next_overlay(self, node: ScriptedNode) -> None:
        """Without a repair: the next overlay looks it up anew. One that remembers it goes on reading what it has."""
        node.add("file", thing(1, _SIZE))
        first = node.overlay("first")
        assert (first / "file").read_bytes() == thing(1, _SIZE).data
        assert node.second("file").samefile(node.object("file"))
        damage(node.object("file"))
        scrub = NodeScrub(node.pool, lambda _digest: False, rate=1 << 30)
        report = scrub.run()
        assert [damage.digest for damage in report.damaged] == [thing(1).digest] or len(report.damaged) == 1
        assert (scrub.damaged, scrub.repaired, scrub.rounds) == (1, 0, 1)
        assert not node.object("file").exists()
        assert not node.second("file").exists()
        assert node.pool.stats().pinned_bytes == _SIZE
        second = node.overlay("second")
        assert (second / "file").read_bytes() == thing(1, _SIZE).data
        assert (first / "file").read_bytes() != thing(1, _SIZE).data

    def test_is_fetched_again_and_forgotten(self, node: ScriptedNode) -> None:
        """With the node's repair everybody who opens it anew reads right bytes, also where it was remembered."""
        node.add("file", thing(1, _SIZE))
        at = node.overlay("first")
        assert (at / "file").read_bytes() == thing(1, _SIZE).data
        damage(node.object("file"))
        told: list[bytes] = []
        scrub = NodeScrub(
            node.pool,
            node.bring,
            told.append,
            node.forget,
            rate=1 << 30,
        )
        scrub.run()
        assert (scrub.damaged, scrub.repaired) == (1, 1)
        assert told == [thing(1, _SIZE).digest]
        assert node.object("file").read_bytes() == thing(1, _SIZE).data
        assert node.second("file").samefile(node.object("file"))
        assert (at / "file").read_bytes() == thing(1, _SIZE).data

    def test_who_has_it_open_keeps_it_until_it_is_closed(self, node: ScriptedNode) -> None:
        """A file does not change below its readers."""
        node.add("file", thing(1, _SIZE))
        at = node.overlay("first")
        with (at / "file").open("rb", buffering=0) as file:
            assert file.read() == thing(1, _SIZE).data
            damage(node.object("file"))
            NodeScrub(node.pool, node.bring, release=node.forget, rate=1 << 30).run()
            file.seek(0)
            assert file.read() != thing(1, _SIZE).data
        node.forget()
        assert (at / "file").read_bytes() == thing(1, _SIZE).data
