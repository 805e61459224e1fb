"""The merged file system of an image, read out of its layers' recipes.

Trees take a while to merge (about 20 µs for each member), so the last few are kept, for the pages of a listing that
follow: `_NODES_KEPT` nodes in all, of which each takes about half a kilobyte, and the last tree in any case. One tree
is merged at a time. No file data is read.
"""

from __future__ import annotations

import base64
import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_from_bytes

from pagepool.errors import CorruptError, LayerInvalidError, LimitError, PendingError
from pagepool.image import Tree, TreeMerger, decode_chunk, iter_members
from pagepool_service.images import PENDING, UNMOUNTABLE
from pagepool_service.store.environment import Table
from pagepool_service.store.schema import parse_recipe_key, recipe_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pagepool.image import Node, Op
    from pagepool_service.images import ImageView
    from pagepool_service.store.schema import LayerRecord
    from pagepool_service.store.store import Store

MAX_MEMBERS = 500_000
_TREES_KEPT = 8
_NODES_KEPT = MAX_MEMBERS


@dataclass(frozen=True, slots=True)
class FilesPage:
    """Some entries of a listing, as JSON objects; `next` is where to go on, or None at the end."""

    entries: list[dict[str, Any]]
    next: str | None


class Trees:
    """Merges trees, and keeps the last ones. Thread-safe: `kept` answers at once, `tree` waits for other merges."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: OrderedDict[tuple[LayerRecord, ...], Tree] = OrderedDict()
        self._lock = threading.Lock()
        self._merging = threading.Lock()

    def kept(self, view: ImageView) -> Tree | None:
        """The tree of an image, if it is at hand.

        Raises:
            PendingError, LayerInvalidError, LimitError: see `tree`.
        """
        return self._take(_layers(view))

    def tree(self, view: ImageView, step: Callable[[int], object] = lambda _: None) -> Tree:
        """The tree of an image. Blocks while it is merged.

        Args:
            step: told of members as they are merged.

        Raises:
            PendingError: its layers are still being read.
            LayerInvalidError: it is unmountable.
            LimitError: it has more members than a listing is made for.
            CorruptError: a recipe is damaged, or was collected meanwhile.
        """
        return self._tree(_layers(view), step)

    def tree_of(self, layers: Sequence[LayerRecord]) -> Tree:
        """The tree of layers, lowest first. Blocks while it is merged.

        Raises:
            LimitError: they have more members than a listing is made for.
            CorruptError: see `tree`.
        """
        return self._tree(_bounded(layers), lambda _: None)

    def _tree(self, layers: tuple[LayerRecord, ...], step: Callable[[int], object]) -> Tree:
        with self._merging:  # also so that two requests do not merge the same tree one after the other
            tree = self._take(layers)
            if tree is None:
                tree = self._merge(layers, step)
                self._keep(layers, tree)
        return tree

    def _take(self, layers: tuple[LayerRecord, ...]) -> Tree | None:
        with self._lock:
            tree = self._kept.get(layers)
            if tree is not None:
                self._kept.move_to_end(layers)
        return tree

    def _keep(self, layers: tuple[LayerRecord, ...], tree: Tree) -> None:
        with self._lock:
            self._kept[layers] = tree
            nodes = sum(kept.size for kept in self._kept.values())
            while len(self._kept) > 1 and (len(self._kept) > _TREES_KEPT or nodes > _NODES_KEPT):
                nodes -= self._kept.popitem(last=False)[1].size

    def _merge(self, layers: Sequence[LayerRecord], step: Callable[[int], object]) -> Tree:
        merger = TreeMerger(2 * MAX_MEMBERS)
        for layer in layers:
            merger.apply_layer(iter_members(_counted(_whole(self._store, layer), step)))
        return merger.finish()


def _counted(chunks: Iterator[Sequence[Op]], step: Callable[[int], object]) -> Iterator[Sequence[Op]]:
    for chunk in chunks:
        yield chunk
        step(len(chunk))


def _whole(store: Store, layer: LayerRecord) -> Iterator[Sequence[Op]]:
    """The decoded chunks of a layer's recipe, and an error where one of them is not there any more.

    Without the rest of a layer that is collected while it is read, a tree would be whole, and wrong.
    """
    position = 0
    for start, ops in _read_chunks(store, layer.recipe):
        if start != position:
            break
        position += sum(op.size for op in ops)
        yield ops
    if position != layer.plain_size:
        raise CorruptError("recipe", str(layer.recipe), f"nothing covers byte {position}")


def recipe_chunks(store: Store, recipe: int) -> Iterator[Sequence[Op]]:
    """The decoded chunks of a recipe, those that are there, each read in a transaction of its own."""
    return (ops for _, ops in _read_chunks(store, recipe))


def _read_chunks(store: Store, recipe: int) -> Iterator[tuple[int, Sequence[Op]]]:
    """Chunks, and where in the tar each begins."""
    prefix = recipe_key(recipe, 0)[:8]
    start: bytes | None = prefix
    while start is not None:
        with store.env.read() as txn:
            record = next(txn.scan(Table.RECIPES, prefix, start=start), None)
            if record is None:
                return
            ops = decode_chunk(record[1])
        start = record[0] + b"\0"
        yield parse_recipe_key(record[0])[1], ops


def _layers(view: ImageView) -> tuple[LayerRecord, ...]:
    """An image's layers, if it can be listed."""
    if view.state == UNMOUNTABLE:
        raise LayerInvalidError(str(view.digest), view.reason)
    if view.state == PENDING:
        raise PendingError(view.digest, view.waiting)
    found: list[LayerRecord] = []
    for layer in view.layers:
        if layer.layer is None:  # without it the tree would be another
            raise CorruptError("layer", str(layer.descriptor.digest), "it was read, and is not there")
        found.append(layer.layer)
    return _bounded(found)


def _bounded(layers: Sequence[LayerRecord]) -> tuple[LayerRecord, ...]:
    members = sum(layer.members for layer in layers)
    if members > MAX_MEMBERS:
        raise LimitError("number of members", members, MAX_MEMBERS)
    return tuple(layers)


def list_files(tree: Tree, path: bytes, *, recursive: bool, limit: int, after: bytes | None) -> FilesPage:
    """What `path` names: a directory's entries, or everything below it, or one file.

    Args:
        after: the path of the last entry of the page before.

    Raises:
        PathUnknownError: there is no such path.
    """
    mark = None if after is None else after.split(b"/")
    found = _below(tree, path, mark) if recursive else _entries(tree, path)
    if mark is not None:
        found = ((name, node) for name, node in found if name.split(b"/") > mark)
    page = list(islice(found, limit + 1))
    more = len(page) > limit
    entries = [_describe(name, node) for name, node in page[:limit]]
    return FilesPage(entries, quote_from_bytes(page[limit - 1][0]) if more and limit else None)


def _entries(tree: Tree, path: bytes) -> Iterator[tuple[bytes, Node]]:
    clean = path.strip(b"/")
    if tree.lookup(path).children is None:
        yield clean, tree.lookup(path)
        return
    for name, node in tree.list(path):
        yield (clean + b"/" + name if clean else name), node


def _below(tree: Tree, path: bytes, mark: Sequence[bytes] | None) -> Iterator[tuple[bytes, Node]]:
    """A node and all below it, a directory before its entries, in the order of path components.

    Args:
        mark: the path of an entry; what comes before it is left out, where that can be told without looking at it.
            A page would cost as much as all that were before it.
    """
    here, node = path.strip(b"/"), tree.lookup(path)
    base = here.split(b"/") if here else []
    if mark is None or list(mark[: len(base)]) != base:
        stack = [(here, node)]
    else:
        stack = []
        for name in mark[len(base) :]:
            children = node.children or {}
            stack += _named(here, {key: child for key, child in children.items() if key > name})
            if name not in children:
                break
            here, node = (here + b"/" if here else b"") + name, children[name]
        else:
            stack += _named(here, node.children or {})
    while stack:
        here, node = stack.pop()
        yield here, node
        stack += _named(here, node.children or {})


def _named(directory: bytes, children: Mapping[bytes, Node]) -> list[tuple[bytes, Node]]:
    """Entries by path, the last one first."""
    prefix = directory + b"/" if directory else b""
    return [(prefix + name, child) for name, child in sorted(children.items(), reverse=True)]


def _describe(path: bytes, node: Node) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "path": _text(b"/" + path),
        "type": node.kind.value,
        "mode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
        "size": node.size,
        "mtime_ns": node.mtime_ns,
        "nlink": node.nlink,
        "linkname": _text(node.target),
        "object": "" if node.object is None else node.object.hex(),
    }
    if node.devmajor or node.devminor:
        entry |= {"devmajor": node.devmajor, "devminor": node.devminor}
    if node.xattrs:
        values = {_text(name): base64.b64encode(value).decode() for name, value in sorted(node.xattrs.items())}
        entry["xattrs"] = values
    if not _is_text(path):
        entry["path_base64"] = base64.b64encode(b"/" + path).decode()
    return entry


def _text(name: bytes) -> str:
    """A name for JSON: bytes that are not UTF-8 as ``\\xNN``."""
    return name.decode("utf-8", "backslashreplace")


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
