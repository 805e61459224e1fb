"""Merging the layers of an image into a tree.

What umoci's ``UnpackEntry`` makes of the layers on disk. Overlay drivers, which do not see the layers below, make
something else of what hardly any builder writes; docs/design.md has where ("Where readers of layers disagree"):

- Parents are resolved inside the root, symlinks followed; missing ones are made (mode 0755, root, time 0; in a
  directory with setgid they have that bit and its group, as Linux does it), and one that is no directory is replaced
  by one (umoci since 0.5; others refuse the layer).
- A member replaces what was there. Only a directory on a directory keeps its entries, and takes all else, xattrs too,
  from the member.
- A hard link names the node that its target has at that moment, in this layer or one below; it changes nothing of
  it, whatever its header says. Its target is not followed if it is a symlink.
- Every symlink has mode 0777, whatever its header says.
- A whiteout removes what lower layers brought, an opaque mark what they brought into its directory, and neither
  touches what the same layer brought, before or after it.
- AUFS's own files (``.wh..wh.*``) and xattrs that belong to the host (SELinux, NFSv4) are left out. A file that AUFS
  kept for its hard links (``.wh..wh.plnk``) is what the layer's links to it name.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping, Sequence

from pagepool.errors import LayerInvalidError, PathUnknownError
from pagepool.image.member import NO_XATTRS, Kind, Member, show_name
from pagepool.image.ops import LITERAL, Op
from pagepool.image.tree import Node, Tree, resolve_path

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_AUFS_LINKS = b".wh..wh.plnk/"
_LINK_MODE = 0o777
MAX_NODES = 2_000_000
_HOST_XATTRS = frozenset((b"security.selinux", b"system.nfs4_acl"))


class TreeMerger:
    """Builds one tree, layer by layer, the lowest first. Not thread-safe.

    Args:
        max_nodes: how many nodes may be made, those that are replaced or removed later included. A few megabytes of
            long names can ask for millions of directories that no member describes.
    """

    def __init__(self, max_nodes: int = MAX_NODES) -> None:
        self._root = Node(Kind.DIRECTORY, 0o755, children={})
        self._max_nodes = max_nodes
        self._nodes = 0
        # Of each directory the entries that the layer being applied brought, or brought something into: its own
        # whiteouts spare them.
        self._touched: dict[Node, set[bytes]] = {}
        self._aufs_links: dict[bytes, Node] = {}

    def apply_layer(self, members: Iterable[tuple[Member, Sequence[Op]]]) -> None:
        """Apply one layer.

        Args:
            members: what `members.iter_members` gives.

        Raises:
            LayerInvalidError: a member cannot be applied: a hard link to nothing or to a directory, a symlink loop,
                too many nodes.
        """
        self._touched = {}
        self._aufs_links = {}
        for member, data in members:
            try:
                self._apply(member, data)
            except PathUnknownError as error:
                raise LayerInvalidError(show_name(member.path), "is behind a loop of symbolic links") from error
            if self._nodes > self._max_nodes:
                raise LayerInvalidError(show_name(member.path), f"is beyond the limit of {self._max_nodes} files")

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
                self._white_out(directory, None)
            elif not _is_aufs(path):
                self._white_out(directory, name[len(_WHITEOUT) :])
            elif path.startswith(_AUFS_LINKS) and member.kind is Kind.REGULAR:
                self._aufs_links[path] = _new_node(member, data)
                self._nodes += 1
            return
        parent = self._make_parents(directory, name)
        assert parent.children is not None
        old = parent.children.get(name)
        if member.kind is Kind.DIRECTORY and old is not None and old.children is not None:
            _set_metadata(old, member)
            return
        # Gone before a hard link is looked up: one to itself, or into what it replaces, finds nothing.
        parent.children.pop(name, None)
        if member.kind is Kind.HARDLINK:
            parent.children[name] = self._find_link(member)
        else:
            parent.children[name] = _new_node(member, data)
            self._nodes += 1

    def _make_parents(self, directory: bytes, name: bytes) -> Node:
        """The node of a directory, made where it is missing, with the way to `name` in it marked as touched."""
        names, nodes = resolve_path(self._root, directory)
        here = self._root
        for part, node in zip(names, nodes[1:], strict=True):
            self._touched.setdefault(here, set()).add(part)
            if node is None or node.children is None:
                assert here.children is not None
                node = _new_parent(here)
                here.children[part] = node
                self._nodes += 1
            here = node
        self._touched.setdefault(here, set()).add(name)
        return here

    def _find_link(self, member: Member) -> Node:
        target = member.link_path
        directory, _, name = target.rpartition(b"/")
        parent = resolve_path(self._root, directory)[1][-1]
        node = self._aufs_links.get(target) or (None if parent is None else parent.entry(name))
        if node is None or node.children is not None:
            what = "is not there" if node is None else "is a directory"
            reason = f"is a hard link to {show_name(target)!r}, which {what}"
            raise LayerInvalidError(show_name(member.path), reason)
        return node

    def _white_out(self, directory: bytes, name: bytes | None) -> None:
        """Remove what lower layers brought: one entry of a directory, or all of them where no name is given.

        Of an entry that this layer touched, what lower layers brought into it.
        """
        start = resolve_path(self._root, directory)[1][-1]
        if start is None or not start.children:
            return
        stack = [(start, [name] if name is not None else list(start.children))]
        while stack:
            parent, names = stack.pop()
            touched = self._touched.get(parent, ())
            for entry in names:
                assert parent.children is not None
                if entry not in touched:
                    parent.children.pop(entry, None)
                    continue
                child = parent.entry(entry)
                if child is not None and child.children:
                    stack.append((child, list(child.children)))


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


def _new_parent(above: Node) -> Node:
    """A directory that no member describes."""
    inherited = above.mode & stat.S_ISGID
    return Node(Kind.DIRECTORY, 0o755 | inherited, gid=above.gid if inherited else 0, children={})


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
    # Linux keeps no permissions of symbolic links, and shows the same of all.
    node.mode = _LINK_MODE if member.kind is Kind.SYMLINK else member.mode
    node.uid, node.gid = member.uid, member.gid
    node.mtime_ns = member.mtime_ns
    node.xattrs = _keep_xattrs(member.xattrs) if member.xattrs else NO_XATTRS


def _keep_xattrs(xattrs: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    return {name: value for name, value in xattrs.items() if name not in _HOST_XATTRS}
