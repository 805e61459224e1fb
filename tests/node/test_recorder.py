"""The recorder on a real overlay: what is opened is recorded, by whom and through whatever mount."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pagepool.digest import blake3_raw
from pagepool.image import Kind, TreeFile
from pagepool.image.treefile import ROOT
from pagepool.node import recorder
from pagepool.node.recorder import Recorder, lower_inode, tree_resolver, try_record
from tests.node.stacks import Stack, mounted_stack
from tests.support.trees import TreeBuilder

_FILES = {f"lib/{name}": name.encode() * 50_000 for name in ("one", "two", "three", "gate")}
_INLINED = {"etc/small": b"small"}
TIMEOUT_S = 60
_ONE, _TWO, _THREE, _GATE = (blake3_raw(data) for data in _FILES.values())


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with mounted_stack(tmp_path, _FILES, _INLINED) as made:
        recording = try_record(made.root, lambda _: None, seconds=0)
        if recording is None:
            pytest.skip("needs fanotify")
        recording.stop()
        yield made


def _resolver(stack: Stack) -> Callable[[os.stat_result], bytes | None]:
    """A resolver that knows inode numbers of the metadata image."""
    known = {(stack.meta / name).stat().st_ino: blake3_raw(data) for name, data in _FILES.items()}
    return lambda status: known.get(lower_inode(status.st_ino))


def _read(*paths: Path) -> None:
    for path in paths:
        path.read_bytes()


def test_order_of_first_open(stack: Stack) -> None:
    recording = Recorder(stack.root, _resolver(stack))
    _read(*(stack.root / name for name in ("lib/two", "etc/small", "lib/one", "lib/two")))
    list(stack.root.rglob("*"))
    (stack.root / "lib/three").stat()
    (stack.root / "new").write_bytes(b"written")
    found = recording.stop()
    assert found.objects == (_TWO, _ONE)
    assert found.complete


def test_other_mount_namespaces_and_execution(stack: Stack) -> None:
    """As runc has it: a namespace, and a mount, that were made after the recording began."""
    descriptor = os.open(stack.root, os.O_RDONLY | os.O_DIRECTORY)
    recording = Recorder(descriptor, _resolver(stack))
    os.close(descriptor)
    script = 'mkdir "$1" && mount --bind "$0" "$1" && cat "$1/lib/one" && umount -l "$0" && exec cat "$1/lib/three"'
    other = stack.root.parent / "other"
    subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, stack.root, other],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert recording.stop().objects == (_ONE, _THREE)


def test_recording_looks_nothing_up(stack: Stack) -> None:
    """The kernel opens a file for the recorder though its object has gone meanwhile: it asks no layer again."""
    inside, go = threading.Event(), threading.Event()
    resolve = _resolver(stack)

    def wait(status: os.stat_result) -> bytes | None:
        inside.set()
        assert go.wait(60)
        return resolve(status)

    recording = Recorder(stack.root, wait)
    _read(stack.root / "lib/gate")
    assert inside.wait(60)
    with (stack.root / "lib/one").open("rb"):
        stack.object_path(_FILES["lib/one"]).unlink()
        go.set()
        found = recording.stop()
    assert found.objects == (_GATE, _ONE)
    assert found.complete


def test_changed_files_are_not_objects(stack: Stack) -> None:
    tree, node_of = _tree(stack)
    recording = Recorder(stack.root, tree_resolver(tree, node_of))
    with (stack.root / "lib/one").open("ab") as file:
        file.write(b"more")
    _read(stack.root / "lib/one", stack.root / "lib/two", stack.root / "etc/small")
    found = recording.stop().objects
    # The first open, for writing, is of the image's content, which is then copied.
    assert found[-2:] == (_TWO, blake3_raw(_INLINED["etc/small"]))
    assert set(found[:-2]) <= {_ONE}


def test_ends_by_itself(stack: Stack) -> None:
    recording = Recorder(stack.root, _resolver(stack), limit=1)
    _read(stack.root / "lib/one", stack.root / "lib/two")
    found = recording.wait()
    assert found.objects == (_ONE,)
    assert not found.complete
    assert recording.stop() == found
    subprocess.run(["umount", stack.root], check=True)  # nothing holds it
    subprocess.run(["mount", "-t", "tmpfs", "none", stack.root], check=True)  # for the fixture to unmount


_OPENS = """
import os, sys
while True:
    for number in range(1000):
        os.close(os.open(f"{sys.argv[1]}/{number}", os.O_RDONLY))
"""


def test_ends_though_files_are_opened_without_end(stack: Stack) -> None:
    """Faster than can be looked at. It took the worker's time for as long as a program did that."""
    for number in range(1000):
        (stack.root / str(number)).touch()
    recording = Recorder(stack.root, _resolver(stack), seconds=1.0)
    words = [sys.executable, "-S", "-c", _OPENS, str(stack.root)]
    programs = [subprocess.Popen(words) for _ in range(8)]
    try:
        recording._thread.join(TIMEOUT_S)
        assert not recording._thread.is_alive()
    finally:
        for program in programs:
            program.kill()
            program.wait()
        recording.stop()


def test_a_mount_is_held_no_more_once_it_has_finished(stack: Stack) -> None:
    inside, go = threading.Event(), threading.Event()

    def wait(_: os.stat_result) -> None:
        inside.set()
        assert go.wait(60)

    other = stack.root.parent / "other"
    other.mkdir()
    subprocess.run(["mount", "--bind", stack.root, other], check=True)
    recording = Recorder(stack.root, wait)
    _read(other / "lib/one")
    assert inside.wait(60)  # with the file open
    threading.Timer(0.1, go.set).start()
    try:
        recording.finish()
        subprocess.run(["umount", other], check=True)
    finally:
        recording.stop()
        subprocess.run(["umount", "--quiet", other], check=False)
    recording.finish()


def test_a_full_queue_is_told() -> None:
    def event(mask: int, descriptor: int) -> bytes:
        return recorder._EVENT.pack(recorder._EVENT.size, 3, 0, recorder._EVENT.size, mask, descriptor, 1)

    data = event(recorder._FAN_OPEN, 7) + event(recorder._FAN_Q_OVERFLOW, -1)
    assert list(recorder._parse(data)) == [(recorder._FAN_OPEN, 7), (recorder._FAN_Q_OVERFLOW, -1)]


def test_nothing_where_there_is_no_fanotify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(recorder._NOT_HERE[0], "not here")

    monkeypatch.setattr(recorder, "_mark", refuse)
    assert try_record(tmp_path, lambda _: None) is None


def _tree(stack: Stack) -> tuple[TreeFile, Callable[[int], int]]:
    """The image's tree, and which inode of its metadata image is which node."""
    builder = TreeBuilder()
    for name, data in {**_FILES, **_INLINED}.items():
        builder.file(name, data)
    tree = builder.build()
    numbers: dict[int, int] = {}
    for name in (*_FILES, *_INLINED):
        directory, _, leaf = name.encode().rpartition(b"/")
        numbers[(stack.meta / name).stat().st_ino] = tree.child(tree.child(ROOT, directory), leaf)
    return tree, lambda inode: numbers.get(inode, 0)


def test_resolver() -> None:
    builder = TreeBuilder()
    builder.file("a", b"a" * 5000)
    builder.file("empty")
    tree = builder.build()
    numbers = {tree.node(number).size: number for number in range(1, tree.node_count + 1)}
    resolve = tree_resolver(tree, lambda inode: inode - 1000 if inode > 1000 else 0)
    assert tree.node(numbers[5000]).kind is Kind.REGULAR

    def status(inode: int, size: int) -> os.stat_result:
        return os.stat_result((0o100644, inode, 1, 1, 0, 0, size, 0, 0, 0))

    assert resolve(status(1000 + numbers[5000], 5000)) == blake3_raw(b"a" * 5000)
    assert resolve(status((1 << 63) + 1000 + numbers[5000], 5000)) == blake3_raw(b"a" * 5000)
    for inode, size in ((1000 + numbers[5000], 4999), (7, 5000), (1001, 5000), (99_999, 5000)):
        assert resolve(status(inode, size)) is None
