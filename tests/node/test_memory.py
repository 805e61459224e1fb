"""What containers take in memory: a report over pools made by hand, and what the command prints of it."""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pagepool.cli import app
from pagepool.cli.commands import memory as memory_command
from pagepool.errors import UnsupportedError
from pagepool.image import TreeFile
from pagepool.node.memory import MemoryInputs, MountedImage, mapped_bytes, measure_memory, parse_maps, resident_below
from pagepool.pool.layout import PAGE, object_name
from tests.node.stacks import mounted_stack
from tests.support.trees import TreeBuilder

_BASE, _OLD, _NEW, _ABSENT = (bytes([number]) * size for number, size in enumerate((20_000, 5_000, 9_000, 7_000), 1))
_BASE_SIZE, _OLD_SIZE, _NEW_SIZE = 20_480, 8_192, 12_288


class _Node:
    """Implements `MemorySource`."""

    def __init__(self, inputs: MemoryInputs) -> None:
        self._inputs = inputs

    def inputs(self) -> MemoryInputs:
        return self._inputs


@pytest.fixture
def inputs(tmp_path: Path) -> Iterator[MemoryInputs]:
    """Two containers of one image, one of another on the same base; all that is in the pool is in memory."""
    with ExitStack() as stack:
        old, new = (stack.enter_context(_tree(tmp_path / "objects", *data)) for data in ((_BASE, _OLD), (_BASE, _NEW)))
        upper = tmp_path / "upper"
        (upper / "etc").mkdir(parents=True)
        (upper / "etc/hosts").write_bytes(b"own")
        os.link(upper / "etc/hosts", upper / "again")
        (upper / "link").symlink_to("/etc/passwd")
        containers = (
            MountedImage("first", "app:old", old, upper),
            MountedImage("second", "app:old", old),
            MountedImage("third", "app:new", new),
        )
        yield MemoryInputs(containers, tmp_path / "objects")


class _tree:  # noqa: N801 - a context manager
    def __init__(self, objects: Path, *contents: bytes) -> None:
        builder = TreeBuilder()
        for number, data in enumerate((*contents, _ABSENT)):
            builder.file(f"file{number}", data)
        self._tree = builder.build()
        for digest, data in builder.objects.items():
            path = objects / object_name(digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            if data != _ABSENT:
                path.write_bytes(data)

    def __enter__(self) -> TreeFile:
        return self._tree

    def __exit__(self, *_: object) -> None:
        self._tree.close()


def test_containers_and_all_of_them(inputs: MemoryInputs) -> None:
    report = measure_memory(inputs)
    first, second, third = report.containers
    assert (first.id, first.image, first.mapped) == ("first", "app:old", None)
    assert first.present == first.resident == first.shared == _BASE_SIZE + _OLD_SIZE
    assert (third.resident, third.shared) == (_BASE_SIZE + _NEW_SIZE, _BASE_SIZE)
    assert (first.private, second.private, report.private) == (PAGE, 0, PAGE)
    assert report.resident == report.present == _BASE_SIZE + _OLD_SIZE + _NEW_SIZE
    assert report.per_container == 3 * _BASE_SIZE + 2 * _OLD_SIZE + _NEW_SIZE
    assert report.per_image == 2 * _BASE_SIZE + _OLD_SIZE + _NEW_SIZE
    assert report.saved == 2 * _BASE_SIZE + _OLD_SIZE
    assert report.shared == _BASE_SIZE + _OLD_SIZE
    assert (report.twice, report.mapped) == (0, None)


def test_objects_that_are_in_the_lazy_mount_too(inputs: MemoryInputs, tmp_path: Path) -> None:
    """Two caches are two files; one of an object that is not in the pool is not held twice."""
    tree = inputs.containers[0].tree
    digests = {tree.object(index).size: tree.object(index).digest for index in range(tree.object_count)}
    lazy = {}
    for data in (_BASE, _ABSENT):
        lazy[digests[len(data)]] = tmp_path / f"lazy{len(data)}"
        lazy[digests[len(data)]].write_bytes(data)
    report = measure_memory(MemoryInputs(inputs.containers[:1], inputs.objects, lazy))
    (one,) = report.containers
    assert one.twice == report.twice == _BASE_SIZE
    assert one.resident == 2 * _BASE_SIZE + _OLD_SIZE + 8_192
    lazy[digests[len(_BASE)]].unlink()
    assert measure_memory(MemoryInputs(inputs.containers[:1], inputs.objects, lazy)).twice == 0


def test_nothing_mounted(tmp_path: Path) -> None:
    report = measure_memory(MemoryInputs((), tmp_path))
    assert (report.containers, report.resident, report.saved, report.mapped) == ((), 0, 0, None)


def test_what_processes_map(tmp_path: Path) -> None:
    """Each page of a file once, however many mappings it has, and only of the mount."""
    data = os.urandom(4 * PAGE)
    with mounted_stack(tmp_path, {"lib/one": data}, {"small": b"s"}) as stack, ExitStack() as opened:
        for length, offset in ((2 * PAGE, 0), (2 * PAGE, PAGE), (PAGE, PAGE)):
            file = opened.enter_context((stack.root / "lib/one").open("rb"))
            opened.enter_context(mmap.mmap(file.fileno(), length, prot=mmap.PROT_READ, offset=offset))
        other = tmp_path / "elsewhere"
        other.mkdir()
        assert mapped_bytes([stack.root, tmp_path / "nowhere"]) == {stack.root: 3 * PAGE}
    assert mapped_bytes([]) == {}


def test_parse_maps() -> None:
    text = (
        b"7f0000000000-7f0000003000 r-xp 00002000 00:27 41                         /usr/lib/a b.so\rc\n"
        b"7f0000003000-7f0000004000 rw-p 00000000 00:00 0 \n"
        b"7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]\n"
    )
    assert list(parse_maps(text)) == [(os.makedev(0, 0x27), 41, 0x2000, 0x5000)]


def test_upper_that_is_not_there(tmp_path: Path) -> None:
    assert resident_below(tmp_path / "gone") == 0
    (tmp_path / "link").symlink_to(tmp_path)  # it was moved, and is linked to from where it was
    assert resident_below(tmp_path / "link") == 0


def test_the_command(inputs: MemoryInputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(memory_command, "open_source", lambda: _Node(inputs))
    assert app.run(["memory"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[:4]] == ["CONTAINER", "first", "second", "third"]
    assert "without any sharing:          90.1 kB" in said
    assert app.run(["memory", "--quiet"]) == 0
    assert "first" not in capsys.readouterr().out
    assert app.run(["memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["saved"], len(found["containers"])) == (2 * _BASE_SIZE + _OLD_SIZE, 3)


def test_watching(inputs: MemoryInputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One document a line, until it is interrupted."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(memory_command, "open_source", lambda: _Node(inputs))
    monkeypatch.setattr(time, "sleep", sleep)
    assert app.run(["memory", "--watch", "--interval", "7", "--json"]) == 130
    assert waited == [7, 7]
    assert [json.loads(line)["twice"] for line in capsys.readouterr().out.splitlines()] == [0, 0]


def test_without_a_node(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def absent() -> None:
        raise UnsupportedError("no node runs on this machine")

    monkeypatch.setattr(memory_command, "open_source", absent)
    assert app.run(["memory"]) != 0
    assert "no node runs" in capsys.readouterr().err
