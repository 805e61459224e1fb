"""Which kernel mounts there are, and which of them a node has noted: what can be told while no node runs.

A mount is alive as long as a mount namespace that some process is in has it. One that only a descriptor or a bind
mount holds is not seen.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.mount.kernel import KIND, PREFIX
from pagepool.mount.mountinfo import mounted_at, resolve
from pagepool.node.records import MountRecord, read_records

if TYPE_CHECKING:
    from pagepool.node.places import NodePlaces

_MARK: Final = re.compile(f" - overlay {PREFIX}([^: ]+)".encode())


def noted_mounts(places: NodePlaces) -> list[MountRecord]:
    """The mounts that a node has noted, whether they are there or not."""
    return list(read_records(places.mounts, MountRecord))


def is_cut_off(places: NodePlaces, path: Path) -> bool:
    """Whether the kernel mount at a path asks a lazy mount that is not this node's any more: all of that had ended, and
    what is not here cannot be had through it. Looks at nothing but this one.

    Args:
        path: absolute, without symlinks.
    """
    point = mounted_at(path)
    if point is None or point.type != KIND or not point.source.startswith(PREFIX):
        return False
    identity = point.source.removeprefix(PREFIX).partition(":")[0]
    try:
        asked = json.loads((places.mounts / f"{identity}.json").read_bytes()).get("lazy", "")
    except (OSError, ValueError, AttributeError):
        return False
    lazy = mounted_at(resolve(places.lazy.parent) / places.lazy.name)
    return asked not in ("", "" if lazy is None else "{}:{}".format(*lazy.device))


def mounts_alive() -> set[str]:
    """The ids of the kernel mounts that some mount namespace of the machine has."""
    seen: set[str] = set()
    found: set[str] = set()
    for name in ("self", *(name for name in os.listdir("/proc") if name.isdecimal())):  # noqa: PTH208 - much faster
        process = f"/proc/{name}"
        try:
            namespace = os.readlink(f"{process}/ns/mnt")  # noqa: PTH115 - likewise
            # A process with another root directory may not see all mounts of its namespace.
            view = f"{namespace} {os.readlink(f'{process}/root')}"  # noqa: PTH115 - likewise
            if view in seen:
                continue
            text = Path(f"{process}/mountinfo").read_bytes()
        except OSError:
            continue
        seen.add(view)
        found.update(identity.decode(errors="replace") for identity in _MARK.findall(text))
    return found
