"""Where an upper meets its image: the node of the tree that each name in it stands over, or leads to.

As fs/overlayfs/namei.c looks it up, with one layer below the upper: a redirect that begins with a slash is a path in
the image, any other is a name in the directory that the parent was merged with; no symlink is followed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pagepool.image.member import Kind
from pagepool.image.treefile import ROOT
from pagepool.upper.scan import REDIRECT

if TYPE_CHECKING:
    from pagepool.image.treefile import TreeFile
    from pagepool.upper.scan import UpperNode


class Place(NamedTuple):
    """A name in an image.

    Args:
        directory: the number of the directory it is in, 0 if there is none.
        name: the name.
        number: of its node, 0 if there is none.
    """

    directory: int
    name: bytes
    number: int


def resolve_lower(root: UpperNode, tree: TreeFile) -> None:
    """Set `lower` and `counterpart` of an upper and of all in it."""
    root.lower = root.counterpart = ROOT
    stack = [root]
    while stack:
        parent = stack.pop()
        for name, node in parent.children.items():
            node.counterpart = tree.child(parent.lower, name) if parent.lower else 0
            if node.kind is Kind.DIRECTORY:
                found = 0 if node.is_opaque else follow(node, parent.lower, tree).number
                node.lower = found if found and tree.kind(found) is Kind.DIRECTORY else 0
                stack.append(node)
            elif node.is_metacopy:
                found = follow(node, parent.lower, tree).number
                node.lower = found if found and tree.kind(found) is Kind.REGULAR else 0


def follow(node: UpperNode, directory: int, tree: TreeFile) -> Place:
    """What of the image a name in an upper leads to, by its redirect or by its name.

    Args:
        directory: what the directory that it is in was merged with, 0 if with nothing.
    """
    redirect = node.marks.get(REDIRECT)
    if redirect is None:
        redirect = node.path.rpartition(b"/")[2]
    elif redirect.startswith(b"/"):
        directory = ROOT
        *way, redirect = redirect[1:].split(b"/")
        for name in way:
            directory = tree.child(directory, name) if directory else 0
    return Place(directory, redirect, tree.child(directory, redirect) if directory else 0)
