"""Making an upper for a container, and the work directory beside it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from pagepool.image.treefile import ROOT
from pagepool.image.xattrs import only_possible
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
        for name, value in only_possible(node.kind, tree.xattrs(ROOT)).items():
            shown = ESCAPED + name.removeprefix(PREFIX) if name.startswith(PREFIX) else name
            os.setxattr(upper, shown, value)
        os.utime(upper, ns=(node.mtime_ns, node.mtime_ns))
    except BaseException:
        upper.rmdir()
        raise


def make_work(work: Path) -> None:
    """Make an empty work directory, instead of what is there: the kernel keeps nothing there between mounts.

    Args:
        work: beside the upper. Nobody has it mounted.

    Raises:
        OSError: what is there cannot be removed.
    """
    if work.is_symlink() or (work.exists() and not work.is_dir()):
        work.unlink()
    elif work.exists():
        shutil.rmtree(work)
    work.mkdir(mode=0o700)
