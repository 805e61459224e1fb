"""Making an upper for a container."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pagepool.image.treefile import ROOT
from pagepool.upper.scan import ESCAPED, PREFIX

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.image.treefile import TreeFile


def make_upper(upper: Path, tree: TreeFile) -> None:
    """Make an empty upper, with what the image says of its root: that is where a mount takes it from.

    Args:
        upper: is not there; the directory that it is made in is.
        tree: of the image.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be made; nothing is left.
    """
    node = tree.node(ROOT)
    upper.mkdir(mode=0o700)
    try:
        os.chown(upper, node.uid, node.gid)
        upper.chmod(node.mode)
        for name, value in tree.xattrs(ROOT).items():
            shown = ESCAPED + name.removeprefix(PREFIX) if name.startswith(PREFIX) else name
            os.setxattr(upper, shown, value)
        os.utime(upper, ns=(node.mtime_ns, node.mtime_ns))
    except BaseException:
        upper.rmdir()
        raise
