"""What it costs and gains to have small files in the EROFS image of a tree: size, memory, and time to open.

    unshare -m python -m pagepool_service.bench.inlining --images images/numpy-new images/numpy-old --work DIR -- \\
        python3 -c 'import numpy'

Two images are read into a store, their objects written to an ext4 of their own (a file in DIR, by a loop device), and
for each limit both are mounted, overlayfs over the EROFS image and the objects. Everything is mounted anew before each
measurement, and read by a process in a memory cgroup of its own: nothing else on the machine has to stand still for
it, if the mounts are in a namespace of their own: in a copy of them elsewhere the kernel would remember. The command,
if there is one, is run in the first image and then in the other. Needs root, EROFS and overlayfs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zstandard

from pagepool.digest import blake3_raw
from pagepool.errors import UnsupportedError
from pagepool.image import Kind, TreeFile, TreeMerger, encode_tree, iter_members
from pagepool.image.erofs import write_erofs
from pagepool.image.treefile import ROOT
from pagepool_service.bench.images import find_images
from pagepool_service.cache import ExtentCache
from pagepool_service.maintenance import Maintenance
from pagepool_service.store.store import Store
from pagepool_service.store.sums import sum_file
from pagepool_service.trees import recipe_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pagepool_service.bench.images import SourceImage

LIMITS = (0, 256, 512, 1024, 2048, 4096)
_SMALL = 4096
_DISK_SIZE = 4 << 30
_WARM = 7
_CGROUPS = Path("/sys/fs/cgroup")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def read_image(store: Store, image: SourceImage, objects: Path) -> TreeFile:
    """Read an image's layers, and write its objects into a directory. Returns its tree."""
    merger = TreeMerger()
    for layer in image.layers:
        upload = store.uploads / "layer"
        shutil.copyfile(layer.path, upload)
        sums = sum_file(upload, "sha256").sums()
        store.blobs.admit(upload, sums, lambda _: None)
        Maintenance(store).run_all()
        with store.env.read() as txn:
            record = store.blobs.layer(txn, store.blobs.record(txn, sums.digest))
        assert record is not None
        merger.apply_layer(iter_members(recipe_chunks(store, record.recipe)))

    def runs(digest: bytes, size: int) -> Sequence[tuple[int, bytes]]:
        with store.env.read() as txn:
            return store.extents.object_record(txn, digest, size).runs

    raw = encode_tree(merger.finish(), runs)
    tree = TreeFile(raw, blake3_raw(raw))
    cache = ExtentCache(store, None)
    for index in range(tree.object_count):
        info = tree.object(index)
        path = object_path(objects, info.digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join(cache.pieces(info, 0, info.size)))
    cache.close()
    return tree


def object_path(objects: Path, digest: bytes) -> Path:
    """Where an object is, by the name that images redirect to."""
    return objects / digest.hex()[:2] / digest.hex()[2:]


def small_files(tree: TreeFile) -> list[bytes]:
    """Paths of files that one of the limits inlines."""
    found: list[bytes] = []
    waiting = [(b"", ROOT)]
    while waiting:
        path, number = waiting.pop()
        for name, child in tree.entries(number):
            node = tree.node(child)
            if node.kind is Kind.DIRECTORY:
                waiting.append((path + b"/" + name, child))
            elif node.kind is Kind.REGULAR and 0 < node.size <= _SMALL:
                found.append(path + b"/" + name)
    return found


def list_all(root: Path) -> None:
    """Stat everything."""
    waiting = [os.fsencode(root)]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)


def read_files(root: Path, paths: Sequence[bytes]) -> None:
    """Open, read and close files; what is not there is left out."""
    top = os.fsencode(root)
    for path in paths:
        try:
            fd = os.open(top + path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        os.read(fd, _SMALL)
        os.close(fd)


class Stage:
    """The file systems: an ext4 of our own with objects and images; mounts of the images.

    Args:
        work: an empty directory.
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        self.disk = work / "disk"
        self.disk.mkdir()
        with (work / "disk.img").open("wb") as file:
            file.truncate(_DISK_SIZE)
        _run("mkfs.ext4", "-q", "-N", "262144", work / "disk.img")
        self._loop = _run("losetup", "-f", "--show", "--direct-io=on", work / "disk.img")
        self._attach()

    def _attach(self) -> None:
        _run("mount", self._loop, self.disk)

    def forget(self) -> None:
        """Let the kernel forget what it has of the disk."""
        _run("umount", self.disk)
        self._attach()

    @contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        """An image of the disk, with overlayfs over it."""
        meta, top = self._work / f"{name}.meta", self._work / f"{name}.top"
        with ExitStack() as undo:
            for place in (meta, top):
                place.mkdir(exist_ok=True)
            _run("mount", "-t", "erofs", "-o", "ro", self.disk / name, meta)
            undo.callback(_run, "umount", meta)
            options = f"ro,lowerdir={meta}::{self.disk / 'objects'},metacopy=on,redirect_dir=on"
            _run("mount", "-t", "overlay", "-o", options, "pagepool-bench", top)
            undo.callback(_run, "umount", top)
            yield top

    def close(self) -> None:
        """Undo it."""
        _run("umount", self.disk)
        _run("losetup", "-d", self._loop)


def charged(function: Callable[..., None], *arguments: object) -> dict[str, float]:
    """Call a function in a process with a memory cgroup of its own; its processor time, and KiB it was charged with."""
    group = _make_group()
    try:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            status = 1
            try:
                (group / "cgroup.procs").write_text(str(os.getpid()))
                begun = os.times()
                function(*arguments)
                spent = sum(now - then for now, then in zip(os.times()[:4], begun[:4], strict=True))
                os.write(writer, json.dumps(spent).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader) as answer:
            cpu = json.loads(answer.read() or "NaN")
        os.waitpid(child, 0)
        return {"cpu_s": round(cpu, 3), **_charges(group)}
    finally:
        group.rmdir()


def _make_group() -> Path:
    for parent in (_CGROUPS / "memory", _CGROUPS):
        if (parent / "memory.stat").exists():
            group = parent / f"pagepool-inlining-{os.getpid()}"
            group.mkdir()
            return group
    raise UnsupportedError("there is no memory cgroup at /sys/fs/cgroup")


def _charges(group: Path) -> dict[str, float]:
    figures = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    cache = int(figures.get("total_cache", figures.get("file", 0)))
    kernel = group / "memory.kmem.usage_in_bytes"
    slab = int(kernel.read_text()) if kernel.exists() else int(figures.get("slab", 0))
    return {"cache_kib": cache >> 10, "kernel_kib": slab >> 10}


def measure(
    stage: Stage, trees: Sequence[TreeFile], limit: int, command: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure one limit. Yields (what, figures)."""
    for name, tree in zip(("first", "other"), trees, strict=True):
        begun = time.process_time()
        out = io.BytesIO()
        info = write_erofs(tree, lambda asked, tree=tree: _read(stage, tree, asked), out, inline_max=limit)  # type: ignore[misc]
        spent = time.process_time() - begun
        (stage.disk / name).write_bytes(out.getbuffer())
        coded = len(zstandard.ZstdCompressor(level=3).compress(out.getbuffer()))
        yield f"image, {name}", {"size": info.size, "zstd": coded, "inlined": info.inlined, "cpu_s": round(spent, 3)}
    os.sync()
    paths = small_files(trees[0])
    stage.forget()
    with stage.mounted("first") as top:
        yield "stat of everything", charged(list_all, top)
    stage.forget()
    with stage.mounted("first") as top:
        yield f"{len(paths)} small files", charged(read_files, top, paths)
        yield "again, best", min((charged(read_files, top, paths) for _ in range(_WARM)), key=lambda one: one["cpu_s"])
        with stage.mounted("other") as other:
            list_all(other)
            yield "of the other image, once it was listed", charged(read_files, other, paths)
    if command:
        stage.forget()
        with stage.mounted("first") as top, stage.mounted("other") as other:
            yield "command", charged(_run_in, top, command)
            yield "command in the other image", charged(_run_in, other, command)


def undisturbed(measuring: Callable[[], Iterator[tuple[str, dict[str, Any]]]]) -> list[tuple[str, dict[str, Any]]]:
    """Measure, again if somebody had the kernel drop its caches meanwhile."""
    while True:
        before = _drops()
        found = list(measuring())
        if _drops() == before:
            return found


def _drops() -> list[str]:
    return [line for line in Path("/proc/vmstat").read_text().splitlines() if line.startswith("drop_")]


def _read(stage: Stage, tree: TreeFile, asked: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    for index in asked:
        yield index, object_path(stage.disk / "objects", tree.object(index).digest).read_bytes()


def _run_in(root: Path, command: Sequence[str]) -> None:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    subprocess.run(["chroot", str(root), "/usr/bin/env", f"PATH={_PATH}", *command], check=True, **quiet)  # type: ignore[call-overload]


def _run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def main() -> None:
    """Measure, and print a line of JSON for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, nargs=2, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    images = [find_images([place])[0] for place in options.images]
    work = options.work / "inlining"
    work.mkdir()
    try:
        stage = Stage(work)
        try:
            with Store.open(work / "store") as store:
                trees = [read_image(store, image, stage.disk / "objects") for image in images]
            for limit in LIMITS:
                for what, figures in undisturbed(lambda limit=limit: measure(stage, trees, limit, options.command)):  # type: ignore[misc]
                    print(json.dumps({"inlined up to": limit, "what": what, **figures}), flush=True)
        finally:
            stage.close()
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
