"""How much the extents stream sends that nobody asked for, in a store that holds many refreshed versions of an image.

    python -m pagepool_service.bench.excess --image images/debian-new --work DIR

The versions are made of a real layer: in each, all files of some directories are changed, as by an update of packages.
Clients then fetch the last version: with nothing, with the version before, with the first, or object by object. For
each share below which a frame is cut: bytes sent, plain bytes unasked, and the service's processor time.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import tarfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pagepool.digest import blake3_raw
from pagepool.extents import Frame
from pagepool.extents.wire import StreamDecoder
from pagepool.image import TreeMerger, iter_members
from pagepool.image.treeencode import encode_tree
from pagepool.image.treefile import DIGEST_SIZE, TreeFile
from pagepool_service.bench.images import find_images
from pagepool_service.extentstream import ExtentStream
from pagepool_service.maintenance import Maintenance
from pagepool_service.store.store import Store
from pagepool_service.store.sums import sum_file
from pagepool_service.trees import recipe_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSIONS = 20
CHANGED = 0.03  # of the bytes, from one version to the next
SHARES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
_LAZY = 0.1  # of the objects are read one by one


@dataclass(slots=True)
class Sum:
    """What was sent for a client.

    Args:
        wanted: plain bytes asked for.
        unasked: plain bytes that came beside them.
        sent: bytes of the streams.
        requests: how many there were.
        whole: frames sent as they are stored.
        cut: frames made anew.
        cpu_s: processor time.
    """

    wanted: int = 0
    unasked: int = 0
    sent: int = 0
    requests: int = 0
    whole: int = 0
    cut: int = 0
    cpu_s: float = 0.0


def make_versions(layer: Path, seed: int) -> Iterator[io.BytesIO]:
    """The layer's tar, again and again, each time with some directories changed."""
    randomness = random.Random(seed)
    with tarfile.open(layer) as archive:
        members = archive.getmembers()
        contents = {one.name: _read(archive.extractfile(one)) for one in members if one.isreg()}
    directories = defaultdict(list)
    for name in contents:
        directories[name.rpartition("/")[0]].append(name)
    total = sum(map(len, contents.values()))
    for version in range(VERSIONS):
        if version:
            changed = 0
            while changed < CHANGED * total:
                for name in directories[randomness.choice(list(directories))]:
                    contents[name] = _changed(contents[name], randomness)
                    changed += len(contents[name])
        yield _tar(members, contents)


def _read(file: IO[bytes] | None) -> bytes:
    if file is None:
        return b""
    with file:
        return file.read()


def _changed(data: bytes, randomness: random.Random) -> bytes:
    """The data with a few bytes of each page other than before."""
    changed = bytearray(data)
    for start in range(0, len(data), 4096):
        changed[start + randomness.randrange(min(4096, len(data) - start))] ^= randomness.randrange(1, 256)
    return bytes(changed)


def _tar(members: Sequence[tarfile.TarInfo], contents: dict[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for one in members:
            archive.addfile(one, io.BytesIO(contents[one.name]) if one.isreg() else None)
    buffer.seek(0)
    return buffer


def store_versions(store: Store, layer: Path, seed: int) -> list[TreeFile]:
    """Push every version, and read it; their trees."""
    trees = []
    for tar in make_versions(layer, seed):
        upload = store.uploads / "version"
        upload.write_bytes(tar.getbuffer())
        sums = sum_file(upload, "sha256").sums()
        store.blobs.admit(upload, sums, lambda _: None)
        Maintenance(store).run_all()
        with store.env.read() as txn:
            record = store.blobs.layer(txn, store.blobs.record(txn, sums.digest))
        assert record is not None
        trees.append(_tree(store, record.recipe))
    return trees


def _tree(store: Store, recipe: int) -> TreeFile:
    merger = TreeMerger()
    merger.apply_layer(iter_members(recipe_chunks(store, recipe)))

    def runs(digest: bytes, size: int) -> Sequence[tuple[int, bytes]]:
        with store.env.read() as txn:
            return store.extents.object_record(txn, digest, size).runs

    data = encode_tree(merger.finish(), runs)
    return TreeFile(data, blake3_raw(data))


def extents_of(tree: TreeFile) -> list[bytes]:
    """All extents of a tree."""
    return [bytes(tree.extents[at : at + DIGEST_SIZE]) for at in range(0, len(tree.extents), DIGEST_SIZE)]


def fetch(store: Store, tree: TreeFile, requests: Sequence[Sequence[bytes]], held: set[bytes], share: float) -> Sum:
    """Make these requests, each without what the client holds by then."""
    total = Sum()
    held = set(held)
    for request in requests:
        wanted = [digest for digest in request if digest not in held]
        if not wanted:
            continue
        begun = time.process_time()
        stream = ExtentStream(store, tree, wanted, cut_below=share)
        pieces = list(stream)
        total.cpu_s += time.process_time() - begun
        decoder = StreamDecoder()
        for record in (record for piece in pieces for record in decoder.feed(piece)):
            if isinstance(record, Frame):
                total.wanted += sum(size for digest, (_, size) in record.index.items() if digest in set(wanted))
                held.update(record.index)
        total.requests += 1
        total.unasked += stream.sent.unasked
        total.sent += stream.sent.bytes
        total.whole += stream.sent.whole
        total.cut += stream.sent.cut
    return total


def clients(trees: Sequence[TreeFile], seed: int) -> dict[str, tuple[list[list[bytes]], set[bytes]]]:
    """What clients ask for of the last version, and what they hold before."""
    last = trees[-1]
    everything = [extents_of(last)]
    some = random.Random(seed).sample(range(last.object_count), int(last.object_count * _LAZY))
    return {
        "nothing": (everything, set()),
        "the version before": (everything, set(extents_of(trees[-2]))),
        "the first version": (everything, set(extents_of(trees[0]))),
        "object by object": ([list(dict.fromkeys(last.object(one).extents())) for one in some], set()),
    }


def main() -> None:
    """Measure, and print one line of JSON for each client and share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    (image,) = find_images([options.image])
    layer = max(image.layers, key=lambda one: one.size)
    data = options.work / "excess"
    try:
        with Store.open(data) as store:
            trees = store_versions(store, layer.path, options.seed)
            for name, (requests, held) in clients(trees, options.seed).items():
                for share in SHARES:
                    done = fetch(store, trees[-1], requests, held, share)
                    line = {"client has": name, "cut below": share} | {
                        field: getattr(done, field) for field in Sum.__slots__
                    }
                    print(json.dumps(line), flush=True)
    finally:
        shutil.rmtree(data, ignore_errors=True)


if __name__ == "__main__":
    main()
