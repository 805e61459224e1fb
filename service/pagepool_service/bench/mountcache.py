"""What a further container adds to the page cache, when it reads all files of its base.

All images are in storage, and the caches dropped. Then containers are mounted, and stay mounted: two of one image,
one of another image on the same base, one on a base that is nearly the same. In each, the files of its lowest layer
are read, by a process in a memory cgroup of its own: pages that were there already are not charged to it.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool_service.bench.charging import brought_in
from pagepool_service.bench.images import load_image
from pagepool_service.bench.mountrows import MB, row
from pagepool_service.bench.subjects import drop_caches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pagepool_service.bench.lab import Bench, Lab
    from pagepool_service.bench.mountrows import Row

PHASE: Final = "cache"
_PAGE: Final = 4096
_BUFFER: Final = 1 << 20


class Trio(NamedTuple):
    """Images: one, another on its base, and one on a near-identical base."""

    first: str
    same_base: str
    near_base: str


class BaseFile(NamedTuple):
    """A regular file of a layer: digest of its content, bytes of whole pages."""

    digest: bytes
    size: int


def measure_cache(lab: Lab) -> Iterator[Row]:
    """Measure, if there are images for it."""
    trio = find_trio(lab.layouts)
    if trio is None:
        lab.say("no three images on two near-identical bases: the page cache is not measured")
        return
    bases = {name: base_files(lab.layouts[name]) for name in trio}
    differ = differing(bases[trio.first], bases[trio.near_base])
    added: dict[str, list[float]] = {}
    for kind in lab.kinds:
        with lab.bench(kind, [lab.layouts[name] for name in trio]) as bench:
            added[kind] = _measure(lab, bench, trio, bases)
    whole = sum({one.digest: one.size for one in bases[trio.first].values()}.values())
    lab.say(f"files of the base: {whole / MB:.1f} MB; of the near-identical one other: {differ / MB:.1f} MB")
    names = ("first container", "another of the same image", "another image, same base", "a near-identical base")
    aims: tuple[float | None, ...] = (None, 1.0, None, differ / MB + 2)
    for number, (name, aim) in enumerate(zip(names, aims, strict=True)):
        figures = {kind: found[number] for kind, found in added.items()}
        how = "value" if aim is not None else ""
        yield row(PHASE, f"page cache added, {name}, MB", figures, how, aim, unit=MB)
    yield row(
        PHASE, "files of the near-identical base that differ, MB", dict.fromkeys(lab.kinds, float(differ)), unit=MB
    )


def find_trio(layouts: Mapping[str, Path]) -> Trio | None:
    """Choose images by their lowest layers: NAME-old, another on the same layer, and NAME-new."""
    lowest = {name: load_image(path).layers[0].digest for name, path in layouts.items()}
    for first in sorted(layouts):
        near = f"{first.removesuffix('-old')}-new"
        if not first.endswith("-old") or near not in lowest or lowest[near] == lowest[first]:
            continue
        others = [name for name in sorted(layouts) if name != first and lowest[name] == lowest[first]]
        if others:
            return Trio(first, others[-1], near)
    return None


def base_files(layout: Path) -> dict[bytes, BaseFile]:
    """The regular files of an image's lowest layer, by path."""
    found: dict[bytes, BaseFile] = {}
    with tarfile.open(load_image(layout).layers[0].path, mode="r|*") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() and member.size else None
            if content is not None:
                digest = hashlib.file_digest(content, "sha256").digest()  # type: ignore[arg-type] # reads only
                found[os.fsencode(member.name)] = BaseFile(digest, -(-member.size // _PAGE) * _PAGE)
    return found


def differing(known: Mapping[bytes, BaseFile], other: Mapping[bytes, BaseFile]) -> int:
    """Bytes of the contents of `other` that `known` does not have, each once."""
    contents = {one.digest for one in known.values()}
    return sum({one.digest: one.size for one in other.values() if one.digest not in contents}.values())


def _measure(lab: Lab, bench: Bench, trio: Trio, bases: Mapping[str, Mapping[bytes, BaseFile]]) -> list[float]:
    for image in trio:
        bench.subject.fill(image)
    drop_caches()
    added = []
    with ExitStack() as stack:
        for image in (trio.first, trio.first, trio.same_base, trio.near_base):
            (point,) = stack.enter_context(lab.mounted(bench, image))
            added.append(float(brought_in(partial(read_files, point, list(bases[image])))))
            lab.say(f"{bench.subject.name}: {image}: {added[-1] / MB:.1f} MB added")
    return added


def read_files(root: Path, names: Sequence[bytes]) -> int:
    """Read files whole, those that are there still; how many bytes."""
    buffer, total = bytearray(_BUFFER), 0
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            try:
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
            except (FileNotFoundError, NotADirectoryError):  # a layer above has removed it
                continue
            with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
                while count := file.readinto(buffer):
                    total += count
    finally:
        os.close(directory)
    return total
