"""Merging the layers of an image into a tree.

What a runtime makes of the layers on disk, after umoci's ``UnpackEntry`` (containerd and podman agree but where noted):

- Parents are resolved inside the root, symlinks followed; missing ones are made (mode 0755, root, time 0), and one
  that is no directory is replaced by one (umoci since 0.5; others refuse the layer).
- A member replaces what was there. Only a directory on a directory keeps its entries, and takes all else, xattrs too,
  from the member.
- A hard link names the node that its target has at that moment, in this layer or one below; it changes nothing of
  it, whatever its header says. Its target is not followed if it is a symlink.
- A whiteout removes what lower layers brought, an opaque mark what they brought into its directory, and neither
  touches what the same layer brought, before or after it.
- AUFS's own files (``.wh..wh.*``) and xattrs that belong to the host (SELinux, NFSv4) are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pagepool.errors import LayerInvalidError, PathUnknownError
from pagepool.image.member import NO_XATTRS, Kind, Member, show_name
from pagepool.image.ops import LITERAL, Op
from pagepool.image.tree import Node, Tree, resolve_path

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_HOST_XATTRS = frozenset((b"security.selinux", b"system.nfs4_acl"))


class TreeMerger:
    """Builds one tree, layer by layer, the lowest first. Not thread-safe."""

    def __init__(self) -> None:
        self._root = _new_directory()
        # Paths that the layer being applied brought, and their parents: its whiteouts spare them.
        self._touched: set[bytes] = set()

    def apply_layer(self, members: Iterable[tuple[Member, Sequence[Op]]]) -> None:
        """Apply one layer.

        Args:
            members: what `members.iter_members` gives.

        Raises:
            LayerInvalidError: a member cannot be applied: a hard link to nothing or to a directory, a symlink loop.
        """
        self._touched = set()
        for member, data in members:
            try:
                self._apply(member, data)
            except PathUnknownError as error:
                raise LayerInvalidError(show_name(member.path), "is behind a loop of symbolic links") from error

    def finish(self) -> Tree:
        """The tree. The merger must not be used further."""
        return Tree(self._root)

    def _apply(self, member: Member, data: Sequence[Op]) -> None:
        path = member.path
        if not path:
            _set_metadata(self._root, member)
            return
        directory, _, name = path.rpartition(b"/")
        if b".wh." in path and (name.startswith(_WHITEOUT) or _is_aufs(directory)):
            if name == _OPAQUE and not _is_aufs(directory):
                self._clear_directory(directory)
            elif not _is_aufs(path):
                self._white_out(directory, name[len(_WHITEOUT) :])
            return
        names, parent = self._make_parents(directory)
        assert parent.children is not None
        old = parent.children.get(name)
        if member.kind is Kind.DIRECTORY and old is not None and old.children is not None:
            _set_metadata(old, member)
        else:
            # Gone before a hard link is looked up: one to itself, or into what it replaces, finds nothing.
            parent.children.pop(name, None)
            is_link = member.kind is Kind.HARDLINK
            parent.children[name] = self._find_link(member) if is_link else _new_node(member, data)
        self._touch([*names, name])

    def _make_parents(self, directory: bytes) -> tuple[list[bytes], Node]:
        """The resolved directory, made where it is missing, and its node."""
        names, nodes = resolve_path(self._root, directory)
        here = self._root
        for name, node in zip(names, nodes[1:], strict=True):
            if node is None or node.children is None:
                assert here.children is not None
                node = _new_directory()
                here.children[name] = node
            here = node
        return names, here

    def _find_link(self, member: Member) -> Node:
        target = member.link_path
        directory, _, name = target.rpartition(b"/")
        parent = resolve_path(self._root, directory)[1][-1]
        node = parent.children.get(name) if parent is not None and parent.children is not None else None
        if node is None or node.children is not None:
            what = "is not there" if node is None else "is a directory"
            reason = f"is a hard link to {show_name(target)!r}, which {what}"
            raise LayerInvalidError(show_name(member.path), reason)
        return node

    def _touch(self, names: list[bytes]) -> None:
        path = b"/".join(names)
        while path and path not in self._touched:
            self._touched.add(path)
            path = path.rpartition(b"/")[0]

    def _white_out(self, directory: bytes, name: bytes) -> None:
        names, nodes = resolve_path(self._root, directory)
        parent = nodes[-1]
        if parent is not None and parent.children is not None and name in parent.children:
            self._remove_lower(parent, [name], b"/".join(names))

    def _clear_directory(self, directory: bytes) -> None:
        names, nodes = resolve_path(self._root, directory)
        node = nodes[-1]
        if node is not None and node.children is not None:
            self._remove_lower(node, list(node.children), b"/".join(names))

    def _remove_lower(self, parent: Node, names: list[bytes], path: bytes) -> None:
        """Remove entries that this layer did not bring, and what lower layers brought into the others."""
        stack = [(parent, name, path) for name in names]
        while stack:
            parent, name, path = stack.pop()
            assert parent.children is not None
            child_path = path + b"/" + name if path else name
            if child_path not in self._touched:
                del parent.children[name]
                continue
            child = parent.children[name]
            if child.children is not None:
                stack += [(child, entry, child_path) for entry in child.children]


def merge_layers(layers: Iterable[Iterable[tuple[Member, Sequence[Op]]]]) -> Tree:
    """Merge layers, the lowest first.

    Args:
        layers: of each layer, what `members.iter_members` gives.

    Raises:
        LayerInvalidError: a member cannot be applied.
    """
    merger = TreeMerger()
    for members in layers:
        merger.apply_layer(members)
    return merger.finish()


def _is_aufs(path: bytes) -> bool:
    return path.startswith(_AUFS) or b"/" + _AUFS in path


def _new_directory() -> Node:
    return Node(Kind.DIRECTORY, 0o755, children={})


def _new_node(member: Member, data: Sequence[Op]) -> Node:
    kind = member.kind
    is_device = kind in (Kind.CHAR, Kind.BLOCK)
    node = Node(
        kind,
        member.mode,
        size=len(member.linkname) if kind is Kind.SYMLINK else member.size,
        object=bytes(data[0].data) if data and data[0].kind != LITERAL else None,
        target=member.linkname,
        devmajor=member.devmajor if is_device else 0,
        devminor=member.devminor if is_device else 0,
        children={} if kind is Kind.DIRECTORY else None,
    )
    _set_metadata(node, member)
    return node


def _set_metadata(node: Node, member: Member) -> None:
    node.mode, node.uid, node.gid = member.mode, member.uid, member.gid
    node.mtime_ns = member.mtime_ns
    node.xattrs = _keep_xattrs(member.xattrs) if member.xattrs else NO_XATTRS


def _keep_xattrs(xattrs: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    return {name: value for name, value in xattrs.items() if name not in _HOST_XATTRS}
