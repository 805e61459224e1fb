"""What is guessed of starts: what programs name, and what lies beside files that are missed."""

from __future__ import annotations

import json
import random
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagepool.digest import blake3_raw
from pagepool.node.elf import Needs, read_needs
from pagepool.node.guessing import of_config
from pagepool.node.neighbours import FIRST, LARGEST, MOST, PACKAGES, SMALL, Neighbours, TreeMap
from pagepool.node.worker import WorkerOptions
from pagepool.pool.layout import object_name
from tests.fault.test_node import LAZILY, point, push
from tests.node.test_metrics import scrape
from tests.support.nodeserver import running_node
from tests.support.server import Service, running_service
from tests.support.trees import TreeBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pagepool.node.client import NodeClient

_OPTIONS = WorkerOptions(timeout_s=2.0, fill=False, profiles=False, metrics_listen=("127.0.0.1", 0))
_PATIENCE_S = 30.0


def elf(needed: Sequence[bytes] = (), interpreter: bytes = b"", runpath: bytes = b"", filling: int = 200_000) -> bytes:
    """A file that a loader would take as far as its names go; these are at its end."""
    names = b"\0" + b"".join(name + b"\0" for name in (*needed, runpath))
    offsets = [1 + sum(len(name) + 1 for name in needed[:at]) for at in range(len(needed) + 1)]
    base = 64 + 3 * 56
    at = {"interpreter": base + filling}
    at["names"] = at["interpreter"] + len(interpreter) + 1
    at["dynamic"] = at["names"] + len(names)
    entries = [(1, offset) for offset in offsets[:-1]]
    entries += [(29, offsets[-1])] if runpath else []
    entries += [(5, 0x400000 + at["names"]), (10, len(names)), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    size = at["dynamic"] + len(dynamic)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)

    def segment(kind: int, offset: int, length: int) -> bytes:
        return struct.pack("<IIQQQQQQ", kind, 4, offset, 0x400000 + offset, 0, length, length, 8)

    table = segment(1, 0, size) + segment(2, at["dynamic"], len(dynamic))
    table += segment(3, at["interpreter"], len(interpreter) + 1) if interpreter else segment(0, 0, 0)
    data = random.Random(repr(needed)).randbytes(filling)
    return header + table + data + interpreter + b"\0" + names + dynamic


def needs_of(data: bytes) -> Needs:
    return read_needs(lambda start, end: data[start:end], len(data))


def test_what_a_file_names() -> None:
    data = elf([b"liba.so.1", b"libb.so"], b"/lib64/ld.so", b"$ORIGIN/../lib:/opt/lib")
    assert needs_of(data) == Needs(b"/lib64/ld.so", (b"liba.so.1", b"libb.so"), (b"$ORIGIN/../lib", b"/opt/lib"))
    assert needs_of(b"#!/bin/sh\n" * 100) == Needs()
    shell = needs_of(Path("/bin/sh").read_bytes())
    assert b"libc.so.6" in shell.libraries
    assert Path(shell.interpreter.decode()).exists()


def test_a_file_that_names_very_much_keeps_nobody_busy() -> None:
    libraries = [b"lib%d.so" % number for number in range(3000)]
    data = elf(libraries, b"/lib64/ld.so", b":".join(b"a/%d" % number for number in range(5000)))
    needs = needs_of(data)
    assert needs.libraries[0] == b"lib0.so"
    assert len(needs.libraries) <= 64
    assert needs.directories[0] == b"a/0"
    assert len(needs.directories) <= 32


@given(place=st.integers(0, 4000), change=st.binary(min_size=1, max_size=40), kept=st.integers(0, 3000))
def test_damaged_files_name_something_or_nothing(place: int, change: bytes, kept: int) -> None:
    data = bytearray(elf([b"liba.so.1"], b"/lib64/ld.so", filling=100))
    data[place : place + len(change)] = change
    needs_of(bytes(data))
    needs_of(bytes(data[:kept]))


@pytest.mark.parametrize(
    ("programs", "run", "found"),
    [
        (("python3",), {"Entrypoint": ["/entry.sh"], "Cmd": ["sh"]}, [b"python3", b"/entry.sh"]),
        ((), {"Entrypoint": ["/entry.sh"], "Cmd": ["sh"]}, [b"/entry.sh", b"sh"]),
        ((), {"Cmd": None, "Entrypoint": "sh"}, []),
        (("a",), None, [b"a"]),
    ],
)
def test_what_may_be_run(programs: tuple[str, ...], run: object, found: list[bytes]) -> None:
    assert of_config(programs, json.dumps({"config": run}))[0] == found
    assert of_config(programs, None)[0] == [name.encode() for name in programs]
    assert of_config((), json.dumps({"config": {"Env": ["A=1", "PATH=/x:/y"]}}))[1] == b"/x:/y"


@pytest.mark.parametrize("config", [[], "x", {"config": 1}, {"config": {"Env": 1, "Cmd": {"a": 1}, "Entrypoint": [1]}}])
def test_nothing_is_run_by_what_is_no_configuration(config: object) -> None:
    assert of_config((), json.dumps(config))[0] == []


def test_paths_are_followed_as_in_a_root() -> None:
    builder = TreeBuilder()
    builder.file("usr/lib/libz.so.1.2", b"z")
    builder.symlink("usr/lib/libz.so", "libz.so.1.2")
    builder.symlink("lib", "usr/lib")
    builder.symlink("usr/lib/out", "../../../../usr/lib/libz.so")
    builder.symlink("usr/lib/round", "round")
    tree = builder.file_system().tree
    places = TreeMap(tree)
    z = tree.find_object(blake3_raw(b"z"))
    for path in (b"/lib/libz.so", b"usr/lib/libz.so.1.2", b"/usr/./lib//out", b"/usr/lib/../lib/libz.so"):
        assert places.object(places.find(path)[1]) == z
    directory, node = places.find(b"/lib/libz.so")
    assert places.place(z) == (directory, node)
    assert places.object(places.find(b"libz.so", directory)[1]) == z
    for path in (b"/lib/libz", b"/lib/libz.so/x", b"/lib/round", b"/lib/libz.so/..", b"/lib"):
        assert places.object(places.find(path)[1]) == -1
    assert places.object(places.find(b"/usr/.." * 100 + b"/lib/libz.so")[1]) == z
    assert places.find(b"/usr/.." * 1000 + b"/lib/libz.so") == (0, 0)  # who made it may want to keep a node busy


def test_what_lies_beside_a_file_comes_along() -> None:
    builder = TreeBuilder()
    data = {f"{number:03}.pyc": b"%03d" % number * 1000 for number in range(200)}
    for name, text in data.items():
        builder.file(f"lib/{name}", text)
    builder.file("lib/001.txt", b"text")
    builder.file("lib/002.pyc", b"large" * LARGEST)
    builder.file("other/001.pyc", b"other")
    tree = builder.file_system().tree
    index = {name: tree.find_object(blake3_raw(text)) for name, text in data.items()}
    neighbours = Neighbours(tree, TreeMap(tree))
    assert neighbours.next(index["000.pyc"]) == [index[f"{one:03}.pyc"] for one in (1, *range(3, FIRST[0] + 2))]
    assert len(neighbours.next(index["100.pyc"])) == 2 * FIRST[0]
    assert len(neighbours.next(index["101.pyc"])) == MOST[0]
    assert len(neighbours.next(index["102.pyc"])) == MOST[0]
    assert set(neighbours.next(index["199.pyc"])) == {index[f"{199 - one:03}.pyc"] for one in range(1, MOST[0] + 1)}
    assert neighbours.next(tree.find_object(blake3_raw(b"text"))) == []
    assert neighbours.next(tree.find_object(blake3_raw(b"large" * LARGEST))) == []


def packages(*places: str, files: int = 3, size: int = 100, holder: str = "__pycache__/") -> dict[str, bytes]:
    """Packages as Python has them on the disk: an `__init__` and modules."""
    names = [f"{place}/{holder}{name}.pyc" for place in places for name in ("__init__", *map(str, range(files)))]
    return {name: random.Random(name).randbytes(size) for name in names}


@pytest.mark.parametrize("holder", ["__pycache__/", ""])
def test_packages_below_and_beside_one_come_along(holder: str) -> None:
    builder = TreeBuilder()
    small = packages("lib/a", "lib/a/b", "lib/c", holder=holder)
    large = packages("lib/a/large", size=SMALL // 2, holder=holder)
    others = {
        f"lib/c/{holder}__init__.txt": b"text",
        "lib/none/1.pyc": b"none",
        f"lib/c/d/{holder}__init__.pyc": b"deep",
    }
    for name, data in (small | large | others).items():
        builder.file(name, data)
    tree = builder.file_system().tree
    index = {name: tree.find_object(blake3_raw(data)) for name, data in (small | large).items()}
    found = Neighbours(tree, TreeMap(tree)).next(index[f"lib/a/{holder}__init__.pyc"])
    wanted = [*small, f"lib/a/large/{holder}__init__.pyc"]
    assert sorted(found) == sorted(index[name] for name in wanted if name != f"lib/a/{holder}__init__.pyc")
    first = [index[f"lib/a/{holder}{one}.pyc"] for one in range(3)]
    assert sorted(found[:3]) == sorted(first)  # what lies beside it is likelier


def test_of_very_many_packages_not_all_come_along() -> None:
    builder = TreeBuilder()
    files = packages(*(f"lib/p{number:03}" for number in range(300)), size=3000)
    for name, data in files.items():
        builder.file(name, data)
    tree = builder.file_system().tree
    neighbours = Neighbours(tree, TreeMap(tree))
    found = neighbours.next(tree.find_object(blake3_raw(files["lib/p000/__pycache__/__init__.pyc"])))
    assert 100 < len(found) <= FIRST[0] + PACKAGES[0]
    assert sum(tree.object_key(one)[1] for one in found) <= FIRST[1] + PACKAGES[1]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "data", "--workers", "1") as running:
        yield running


def until_here(node: NodeClient, files: Mapping[str, bytes], names: Sequence[str]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    for name in names:
        while not (node.places.objects / object_name(blake3_raw(files[name]))).exists():
            assert time.monotonic() < deadline, name
            time.sleep(0.02)


def test_a_program_is_brought_with_what_it_needs(service: Service, tmp_path: Path) -> None:
    """Before anything is opened, and nothing else of the image is."""
    files = {
        "usr/bin/program": elf([b"liba.so"], b"/lib/ld.so"),
        "usr/bin/script": b"#!/usr/bin/program -x\n" + b"true\n" * 100,
        "usr/bin/other": elf([b"libother.so"], b"/lib/ld.so"),
        "lib/ld.so": elf(),
        "usr/lib/x86_64-linux-gnu/liba.so": elf([b"libb.so", b"libmissing.so"], runpath=b"$ORIGIN/a"),
        "usr/lib/x86_64-linux-gnu/a/libb.so": elf([b"libc.so.6"]),
        "usr/lib/libc.so.6": elf([b"liba.so", b"c"]),
        "usr/lib/libother.so": elf([b"other"]),
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n" * 10,
    }
    reference = push(service, "app", files)
    with running_node(tmp_path / "node", _OPTIONS) as node:
        with node.mount(service.url, reference, point(tmp_path, "m"), replace(LAZILY, programs=("script",))):
            until_here(node, files, [name for name in files if "other" not in name])
        absent = [name for name in files if not (node.places.objects / object_name(blake3_raw(files[name]))).exists()]
        assert sorted(absent) == ["usr/bin/other", "usr/lib/libother.so"]


@pytest.mark.parametrize("starts", [True, False])
def test_files_of_a_directory_come_in_few_requests(service: Service, tmp_path: Path, starts: bool) -> None:
    names = [f"lib/module{number:02}.pyc" for number in range(60)]
    files = {name: random.Random(name).randbytes(3000) for name in names}
    reference = push(service, "app", files)
    read = random.Random(7).sample(names, 30)
    with running_node(tmp_path / "node", _OPTIONS) as node:
        at = point(tmp_path, "m")
        options = replace(LAZILY, programs=("none",)) if starts else LAZILY
        with node.mount(service.url, reference, at, options):
            for name in read:
                assert (at / name).read_bytes() == files[name]
        fetches = int(scrape(node)["pagepool_node_fetch_seconds_count{}"])
    assert fetches <= 4 if starts else fetches >= 15
