"""Ending a node, and taking away what it had made when nothing needs it any more.

With something mounted, what is mounted stays, and all that it is made of: metadata images, the pool, the lazy mount,
whose every question is an error from then on. Without, nothing stays but STATE, a log and lock files: no mount, no
credentials, no cgroup. That also cleans up after a node whose processes were all killed.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.errors import BusyError, PagepoolError, UnreachableError
from pagepool.mount import kernel
from pagepool.mount.mountinfo import mounted_at, resolve
from pagepool.node.alive import mounts_alive
from pagepool.node.control import converse
from pagepool.node.handover import SUPERVISOR, WORKER, Post, end_processes, is_ready
from pagepool.node.records import MountRecord, read_records
from pagepool.node.start import locked, own_cgroups, unmount_lazy

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.node.places import NodePlaces

_END_S: Final = 40.0
"""A worker that does not end is killed after 20 s."""
_BUSY_S: Final = 2.0
_CGROUP_S: Final = 0.5
_LOOK_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Ended:
    """How a node has ended.

    Args:
        was_running: whether it was running.
        mounts: that stay.
        cleared: whether something was taken away.
    """

    was_running: bool
    mounts: int
    cleared: bool


def stop_node(places: NodePlaces) -> Ended:
    """End a node, if it is running. If nothing is mounted, nothing of it stays mounted either. Blocks until then.

    Raises:
        BusyError: its processes do not end.
    """
    if not places.run.is_dir():
        return Ended(was_running=False, mounts=0, cleared=False)
    was_running = any(Post(places.run, name).holder() is not None for name in (SUPERVISOR, WORKER))
    if is_ready(places.run):
        try:
            converse(places.control, {"op": "stop"})
        except UnreachableError:  # it died meanwhile, and the next one need not have been told
            end_processes(places.run)
    elif was_running:
        end_processes(places.run)  # a worker that never serves never answers
    with locked(places.start_lock):
        for name in (WORKER, SUPERVISOR):
            _wait_free(places, name)
        mounts = _count_mounts(places)
        return Ended(was_running, mounts, cleared=not mounts and _clear_away(places))


def _wait_free(places: NodePlaces, name: str) -> None:
    post, deadline = Post(places.run, name), time.monotonic() + _END_S
    while (lock := post.take()) is None:
        if time.monotonic() > deadline:
            raise BusyError(f"the {name} of the node does not end; see {places.log}")
        time.sleep(_LOOK_S)
    os.close(lock)


def _count_mounts(places: NodePlaces) -> int:
    alive = mounts_alive()
    return sum(record.id in alive for record in read_records(places.mounts, MountRecord))


def _clear_away(places: NodePlaces) -> bool:
    cleared = unmount_lazy(places)
    if places.tree_mounts.is_dir():
        for at in list(places.tree_mounts.iterdir()):
            while os.path.ismount(at):
                try:
                    kernel.unmount_kernel(at)
                except (OSError, PagepoolError):
                    break  # an overlay that is not noted has it
                cleared = True
            with suppress(OSError):
                at.rmdir()
    for directory in (places.mounts, places.sources, places.serving):
        shutil.rmtree(directory, ignore_errors=True)
    places.control.unlink(missing_ok=True)
    cleared |= _unmount_pool_image(places)
    _remove_cgroups()
    return cleared


def _remove_cgroups() -> None:
    """Those of other nodes are the same: then somebody stays in them."""
    left, deadline = list(own_cgroups()), time.monotonic() + _CGROUP_S
    while left and time.monotonic() < deadline:
        for own in left:
            with suppress(OSError):
                own.rmdir()
        left = [own for own in left if own.is_dir()]
        time.sleep(_LOOK_S if left else 0.0)


def _unmount_pool_image(places: NodePlaces) -> bool:
    image = kernel.PoolImage(places.pool_image)
    if not image.file.exists() or mounted_at(resolve(places.state)) is None or not image.is_mounted(places.state):
        return False
    return _patiently(lambda: image.unmount(places.state))


def _patiently(action: Callable[[], object]) -> bool:
    """Try for a moment: processes that have ended let go of things one after the other. Whether it worked."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            action()
        except FileNotFoundError:
            return False
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_S)
        else:
            return True
