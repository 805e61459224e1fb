"""The routes below a tree over a store of this process: images out of files, their trees, and a server in a thread."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from pagepool.content import measure_sharing
from pagepool.digest import Digest, blake3_raw
from pagepool.errors import TreeUnknownError
from pagepool.extents import EXTENT_SIZE
from pagepool.image import TreeMerger, iter_members
from pagepool.image.treeencode import encode_tree
from pagepool.image.treefile import TreeFile
from pagepool_service.app import create_app
from pagepool_service.cache import ExtentCache
from pagepool_service.settings import Settings
from pagepool_service.store.store import Store
from pagepool_service.trees import recipe_chunks
from pagepool_service.worker import PageProtocol
from tests.store.helpers import ingest_all, make_tar, push

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from pagepool.content import Sharing
    from pagepool_service.images import ImageView


def build_tree(store: Store, layers: Sequence[Digest]) -> TreeFile:
    """The tree of layers that were read, lowest first."""
    merger = TreeMerger()
    with store.env.read() as txn:
        records = [store.blobs.layer(txn, store.blobs.record(txn, layer)) for layer in layers]
    for record in records:
        assert record is not None
        merger.apply_layer(iter_members(recipe_chunks(store, record.recipe)))

    def runs(digest: bytes, size: int) -> Sequence[tuple[int, bytes]]:
        with store.env.read() as txn:
            return store.extents.object_record(txn, digest, size).runs

    data = encode_tree(merger.finish(), runs)
    return TreeFile(data, blake3_raw(data))


def add_layer(store: Store, files: Mapping[str, bytes]) -> Digest:
    """Push a layer with these files and read it."""
    digest = push(store, make_tar(files))
    ingest_all(store)
    return digest


@dataclass(slots=True)
class FixedTrees:
    """Trees that repositories have, as a test says."""

    trees: dict[tuple[str, bytes], TreeFile] = field(default_factory=dict)
    cold: bool = False

    def add(self, name: str, tree: TreeFile) -> None:
        """A repository gets a tree."""
        self.trees[name, tree.digest] = tree

    def known(self, name: str, view: ImageView) -> TreeFile | None:
        """Not asked for: a test adds what there is."""
        raise TreeUnknownError(f"{name}@{view.digest}")

    def build(self, name: str, view: ImageView) -> TreeFile:
        """Not asked for: a test adds what there is."""
        raise TreeUnknownError(f"{name}@{view.digest}")

    def resolve(self, name: str, tree: bytes, /) -> TreeFile:
        """See `TreeFiles`."""
        found = self.trees.get((name, tree))
        if found is None:
            raise TreeUnknownError(Digest("blake3", tree))
        return found

    def origin(self, name: str, tree: bytes, /) -> tuple[Digest, tuple[Digest, ...]]:  # noqa: ARG002
        """Not asked for: the trees of a test come from no image."""
        raise TreeUnknownError(Digest("blake3", tree))

    def manifests(self, name: str, tree: bytes, /) -> list[Digest]:  # noqa: ARG002  (see `TreeFiles`)
        """None: the trees of a test come from no image."""
        return []

    def measure_sharing(self, present: Container[bytes], /) -> Sharing:
        """See `TreeFiles`."""
        return measure_sharing((), present)

    def warm(self, name: str, tree: bytes, /) -> TreeFile | None:
        """See `TreeFiles`."""
        return None if self.cold else self.trees.get((name, tree))


class MemoryFile:
    """An object in a `MemoryPool`."""

    def __init__(self, data: bytes) -> None:
        self.view = memoryview(data)
        self.closed = 0

    def is_current(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Count it."""
        self.closed += 1


class MemoryPartial:
    """An object that is being filled."""

    def __init__(self, pool: MemoryPool, digest: bytes, size: int, extents: Sequence[bytes]) -> None:
        self._pool, self._digest, self._extents = pool, digest, extents
        self._data = bytearray(size)
        self._present: set[int] = set()

    def has(self, number: int, /) -> bool:
        """Whether an extent is there."""
        return number in self._present

    def missing(self, first: int, end: int, /) -> list[int]:
        """Which are not."""
        return [number for number in range(first, end) if number not in self._present]

    def write(self, number: int, data: memoryview, /) -> None:
        """Take one in."""
        assert blake3_raw(data) == self._extents[number]
        self._pool.written.append((self._digest, number))
        self._data[number * EXTENT_SIZE : number * EXTENT_SIZE + len(data)] = data
        self._present.add(number)

    def is_current(self) -> bool:
        """It is."""
        return True

    def view(self, offset: int, size: int, /) -> memoryview:
        """Bytes of it."""
        assert not self.missing(offset // EXTENT_SIZE, -(-(offset + size) // EXTENT_SIZE))
        return memoryview(self._data)[offset : offset + size].toreadonly()

    def close(self) -> None:
        """Nothing to do."""


class MemoryPool:
    """A pool that is not shared. It notes what it was given, and refuses everything when it is told to be full."""

    def __init__(self) -> None:
        self.id = "0" * 32
        self.path = Path("/nowhere")
        self.objects: dict[bytes, bytes] = {}
        self.written: list[tuple[bytes, int]] = []
        self.full = False

    def get(self, digest: bytes, /) -> MemoryFile | None:
        """An object that is whole."""
        data = self.objects.get(digest)
        return None if data is None else MemoryFile(data)

    def put(self, digest: bytes, data: memoryview, /) -> MemoryFile | None:
        """Take an object in."""
        if self.full:
            raise OSError(28, "No space left on device")
        assert blake3_raw(data) == digest
        self.written.append((digest, 0))
        self.objects[digest] = bytes(data)
        return MemoryFile(self.objects[digest])

    def partial(self, digest: bytes, size: int, extents: Sequence[bytes], /) -> MemoryPartial:
        """Begin to fill an object."""
        if self.full:
            raise OSError(28, "No space left on device")
        return MemoryPartial(self, digest, size, extents)

    def close(self) -> None:
        """Nothing to do."""


@dataclass(slots=True)
class ObjectService:
    """A running server, and what is behind it."""

    url: str
    store: Store
    trees: FixedTrees
    pool: MemoryPool
    cache: ExtentCache

    def image(self, name: str, *layers: Mapping[str, bytes]) -> TreeFile:
        """A repository gets an image of these layers."""
        tree = build_tree(self.store, [add_layer(self.store, files) for files in layers])
        self.trees.add(name, tree)
        return tree


@contextmanager
def object_service(
    data: Path, *, pool: MemoryPool | None = None, body_timeout_s: float = 60.0
) -> Iterator[ObjectService]:
    """A server over an empty store, in a thread of this process."""
    pool = MemoryPool() if pool is None else pool
    with Store.open(data) as store, socket.create_server(("127.0.0.1", 0)) as listener:
        trees, cache = FixedTrees(), ExtentCache(store, pool, 1 << 30)
        settings = Settings(data, body_timeout_s=body_timeout_s)
        app = create_app(settings, store, treefiles=trees, cache=cache)
        config = uvicorn.Config(app, http=PageProtocol, loop="uvloop", lifespan="on", log_config=None, log_level=50)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield ObjectService(f"http://127.0.0.1:{listener.getsockname()[1]}", store, trees, pool, cache)
        finally:
            server.should_exit = True
            thread.join()
