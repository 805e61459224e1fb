"""Brings objects into the pool behind the scenes: a start-up profile at once, the rest of an image when there is time.

Two threads for each service: one for what somebody waits for or will in a moment, one for the rest, which goes on in
small steps and stands back while a container waits for something. No service holds up what comes from another one, as
where packets vanish. What goes wrong is logged. The rest of an image is taken up again
after a while, and with the next mount.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from pagepool.errors import CorruptError, PagepoolError
from pagepool.pool.layout import object_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pagepool.image.treefile import TreeFile
    from pagepool.node.source import Source

_STEP_BYTES: Final = 4 << 20
_STEP_OBJECTS: Final = 512
_BEGIN_S: Final = 10.0  # that a container has to itself before the rest of its image is fetched
_OBJECT_S: Final = 3.0  # the same before the rest of a large object is fetched
_OBJECT_STEP: Final = 32  # extents of it that are fetched at a time, at least
_OBJECT_STEPS: Final = 64  # at most: with each, all of its extents are looked at
_OBJECT_WAITS_S: Final = 15.0  # that its rest stands back at most while others wait
_STAND_BACK_S: Final = 0.2
_AGAIN_S: Final = 30.0  # until what broke off is taken up again; twice as long each time
_LONGEST_AGAIN_S: Final = 600.0
_CLOSE_S: Final = 3.0

log = logging.getLogger("pagepool.node")


class _Lane(NamedTuple):
    tasks: queue.SimpleQueue[Callable[[], None] | None]
    thread: threading.Thread


class Filler:
    """Fills trees.

    Args:
        objects: the pool's directory of whole objects.
        busy: whether somebody waits for an object just now.
        sync: makes what was fetched durable.
        on_whole: told of the digest of an object that `bring_object` was about and that is whole now.
        begin_s: how long a container has to itself before the rest of its image is fetched.
        again_s: how long at least until `take_up` goes on with what broke off.
    """

    def __init__(
        self,
        objects: Path,
        busy: Callable[[], bool],
        sync: Callable[[], None],
        on_whole: Callable[[bytes], None] = lambda _: None,
        *,
        begin_s: float = _BEGIN_S,
        again_s: float = _AGAIN_S,
    ) -> None:
        self._objects = objects
        self._begin_s = begin_s
        self._again_s = again_s
        self._on_whole = on_whole
        self._busy = busy
        self._sync = sync
        self._stopped = threading.Event()
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._lock = threading.Lock()
        self._filling: set[str] = set()
        self._broken_off: dict[str, tuple[float, float]] = {}  # tree -> when to go on, and how long that is waited for

    def complete(self, source: Source) -> None:
        """Bring in all of a tree, when there is time. Does nothing if that is under way."""
        with self._lock:
            if source.record.tree in self._filling:
                return
            self._filling.add(source.record.tree)
        due = time.monotonic() + self._begin_s
        if not self._put("rest", source, lambda: self._complete(source, due)):
            with self._lock:
                self._filling.discard(source.record.tree)
                self._broken_off[source.record.tree] = due + self._again_s, self._again_s

    def take_up(self, source: Source) -> None:
        """Go on with a tree whose filling broke off a while ago. Does nothing otherwise."""
        with self._lock:
            due, _ = self._broken_off.get(source.record.tree, (math.inf, 0.0))
        if time.monotonic() >= due:
            self.complete(source)

    def bring_object(self, source: Source, index: int) -> None:
        """Bring in one object soon: who reads a little of it first does not have to share the link with the rest."""
        due = time.monotonic() + _OBJECT_S
        self._put("urgent", source, lambda: self._bring_object(source, index, due))

    def is_filling(self, tree: str) -> bool:
        """Whether the rest of a tree is being brought in, or will be."""
        return tree in self._filling

    def close(self) -> None:
        """Stop after the present step, and wait for that, a few seconds at most: it may wait for the network."""
        with self._lock:
            self._stopped.set()
            lanes = list(self._lanes.values())
        for lane in lanes:
            lane.tasks.put(None)
        deadline = time.monotonic() + _CLOSE_S
        for lane in lanes:
            lane.thread.join(max(0.0, deadline - time.monotonic()))

    def _put(self, name: str, source: Source, task: Callable[[], None]) -> bool:
        """Have something done for a service, after what was put there before. False if there are too many threads."""
        key = name, source.record.url
        with self._lock:
            lane = self._lanes.get(key)
            if lane is None and not self._stopped.is_set():
                tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
                thread = threading.Thread(target=self._work, args=(tasks,), name=f"node-fill-{name}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False
                lane = self._lanes[key] = _Lane(tasks, thread)
        if lane is not None:
            lane.tasks.put(task)
        return True

    def _work(self, tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
        while (task := tasks.get()) is not None and not self._stopped.is_set():
            try:
                task()
            except (PagepoolError, OSError) as error:
                log.warning("filling broke off: %s", error)
            except Exception:
                log.exception("filling failed")

    def _complete(self, source: Source, due: float) -> None:
        tree = source.record.tree
        damaged: CorruptError | None = None
        try:
            if self._stopped.wait(max(0.0, due - time.monotonic())):
                return
            for step in steps(source.tree, missing(source.tree, self._objects)):
                while self._busy() and not self._stopped.wait(_STAND_BACK_S):
                    pass
                if self._stopped.is_set() or source.record.released:
                    return
                try:
                    with source.noting():
                        source.content.prefetch(step)
                except CorruptError as error:  # of one object: others need not wait until it is mended
                    damaged = error
            self._sync()
            if damaged is not None:
                with source.noting():
                    raise damaged
            with self._lock:
                self._broken_off.pop(tree, None)
        except (PagepoolError, OSError) as error:
            with self._lock:
                _, waited_s = self._broken_off.get(tree, (0.0, self._again_s / 2))
                wait_s = min(2 * waited_s, _LONGEST_AGAIN_S)
                self._broken_off[tree] = time.monotonic() + wait_s, wait_s
            log.warning("filling %s broke off, and goes on in %.0f s: %s", source.record.image, wait_s, error)
        finally:
            with self._lock:
                self._filling.discard(tree)

    def _bring_object(self, source: Source, index: int, due: float) -> None:
        if self._stopped.wait(max(0.0, due - time.monotonic())):
            return
        info = source.tree.object(index)
        path = self._objects / object_name(info.digest)
        if not path.exists():
            patience = time.monotonic() + _OBJECT_WAITS_S
            size = max(_OBJECT_STEP, -(-info.extent_count // _OBJECT_STEPS))
            for first in range(0, info.extent_count, size):
                while self._busy() and time.monotonic() < patience and not self._stopped.wait(_STAND_BACK_S):
                    pass
                if self._stopped.is_set():
                    return
                with source.noting():
                    source.content.prefetch_parts({index: range(first, first + size)})
            if not path.exists():
                return  # the pool does not take it
            self._sync()
        self._on_whole(info.digest)
        # The kernel has pages of its own of what was read through the lazy mount; those of the file are twice the same.
        source.content.forget(index)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def missing(tree: TreeFile, objects: Path) -> list[int]:
    """The objects of a tree that are not whole in a pool. Those that a metadata image has in it are among them: which
    these are is the service's choice, and they are small.

    Args:
        objects: the pool's directory of whole objects; nothing is whole where somebody has removed it.
    """
    try:
        directory = os.open(objects, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return list(range(tree.object_count))
    try:
        found = []
        for index in range(tree.object_count):
            digest, _ = tree.object_key(index)
            if not _is_there(object_name(digest), directory):
                found.append(index)
        return found
    finally:
        os.close(directory)


def steps(tree: TreeFile, indices: Sequence[int]) -> Iterator[list[int]]:
    """Objects in parts of a few megabytes, small ones first: most of what programs open is small."""
    step: list[int] = []
    size = 0
    for index in sorted(indices, key=lambda index: tree.object_key(index)[1]):
        step.append(index)
        size += tree.object_key(index)[1]
        if size >= _STEP_BYTES or len(step) >= _STEP_OBJECTS:
            yield step
            step, size = [], 0
    if step:
        yield step


def _is_there(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
