"""What may not be a volume of a container: a pool that it could write to, and the node's socket.

Root in a container writes to any file that it is shown: modes do not stop it. So a volume that is of a pool, in one, or
around the node's own, is taken with ``:ro`` only. Whoever reaches the node's socket may do everything, and reaches it
on a read-only mount, too: no volume may have that in it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.container.options import OptionInvalidError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pagepool.container.options import Volume

_POOL: Final = b"pagepool pool\n"
"""What a pool's `format` begins with: docs/format/pool.md."""


def check_volumes(volumes: Iterable[Volume], state: Path, run: Path) -> None:
    """Refuse volumes that a container must not have.

    Args:
        state, run: directories of the node, whether they are there or not.

    Raises:
        OptionInvalidError: it names the volume.
    """
    state, run = (Path(os.path.realpath(path)) for path in (state, run))
    for volume in volumes:
        option, source = f"-v {volume.source}", Path(os.path.realpath(volume.source))
        if _overlap(source, run):
            raise OptionInvalidError(
                option, f"{run} would be in it: whoever reaches the node's socket may do everything"
            )
        if volume.read_only:
            continue
        if any(_is_pool(path) for path in (source, *source.parents)):
            raise OptionInvalidError(
                option, "it is a pool's: give it with :ro, since all containers share what is in it"
            )
        if _overlap(source, state):
            raise OptionInvalidError(option, f"the node keeps what all containers share in {state}: give it with :ro")


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def _is_pool(directory: Path) -> bool:
    try:
        with (directory / "format").open("rb") as file:
            return file.read(len(_POOL)) == _POOL
    except OSError:
        return False
