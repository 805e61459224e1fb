"""Copying an image, or an index with everything below it, from a source to a sink.

First the graph of manifests is read (`plan_copy`), then the blobs go over in parallel, then the manifests,
what is referred to before what refers, and the root last (`run_copy`). A failure of any blob stops the
others; nothing is committed then.

Blobs are moved by daemon threads, so that Ctrl-C ends the program without waiting for the network.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from pagepool.errors import ImageInvalidError, LimitError
from pagepool.layout.interface import ImageSink, ImageSource
from pagepool.oci import MAX_INDEX_DEPTH, Descriptor, Index, Manifest, Platform, mediatypes, select_platform

MAX_MANIFESTS = 10_000
"""Most manifests below one root."""
_STOP_WAIT_S = 0.5
_LOOK_S = 0.25


class Watcher(Protocol):
    """Told how a copy goes; called by several threads at once."""

    def begin(self, blobs: Sequence[Descriptor]) -> None:
        """All blobs, before the first is copied."""
        ...

    def progress(self, blob: Descriptor, count: int) -> None:
        """So many more bytes of a blob have gone through; negative if they must go again."""
        ...

    def finish(self, blob: Descriptor, copied: bool) -> None:
        """A blob is over there; `copied` is False if it was there before, or is not to be had and not needed."""
        ...


class SilentWatcher:
    """A watcher that says nothing."""

    def begin(self, blobs: Sequence[Descriptor]) -> None:
        """Say nothing."""

    def progress(self, blob: Descriptor, count: int) -> None:
        """Say nothing."""

    def finish(self, blob: Descriptor, copied: bool) -> None:
        """Say nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be copied.

    Args:
        manifests: every manifest, what is referred to before what refers; the root is the last.
        blobs: every other content, each digest once.
    """

    manifests: tuple[tuple[Descriptor, Manifest | Index], ...]
    blobs: tuple[Descriptor, ...]

    @property
    def root(self) -> tuple[Descriptor, Manifest | Index]:
        """The manifest or index that was asked for."""
        return self.manifests[-1]

    @property
    def size(self) -> int:
        """Bytes of all blobs and manifests."""
        return sum(blob.size for blob in self.blobs) + sum(entry.size for entry, _ in self.manifests)


def plan_copy(source: ImageSource, platform: Platform | None = None) -> Plan:
    """Read all manifests of an image or index.

    Args:
        source: where they are.
        platform: only the image for this platform, instead of the whole index. An image that is in no index
            is taken whatever its platform.

    Raises:
        ManifestUnknownError: the index has none for the platform.
        LimitError: absurdly large or deep.
    """
    root = top = source.root()
    manifest = source.read_manifest(root)
    depth = 0
    while platform is not None and isinstance(manifest, Index):
        depth += 1
        _check_depth(depth, top)
        root = select_platform(manifest.manifests, platform)
        manifest = source.read_manifest(root)
    walk = _Walk(source)
    walk.add(root, manifest, 0)
    return Plan(tuple(walk.manifests.values()), tuple(walk.blobs.values()))


def _check_depth(depth: int, index: Descriptor) -> None:
    if depth > MAX_INDEX_DEPTH:
        raise LimitError(f"depth of indexes within {index.digest}", depth, MAX_INDEX_DEPTH)


class _Walk:
    """Collects a graph of manifests, depth first; digests make circles impossible."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self.manifests: dict[object, tuple[Descriptor, Manifest | Index]] = {}
        self.blobs: dict[object, Descriptor] = {}

    def add(self, descriptor: Descriptor, manifest: Manifest | Index, depth: int) -> None:
        if isinstance(manifest, Index):
            self._add_children(descriptor, manifest, depth + 1)
        else:
            for blob in manifest.blobs:
                known = self.blobs.setdefault(blob.digest, blob)
                if known.size != blob.size:
                    raise ImageInvalidError(str(blob.digest), f"its size is given as {known.size} and {blob.size}")
        self.manifests[descriptor.digest] = (descriptor, manifest)
        if len(self.manifests) > MAX_MANIFESTS:
            raise LimitError("number of manifests in an index", len(self.manifests), MAX_MANIFESTS)

    def _add_children(self, descriptor: Descriptor, index: Index, depth: int) -> None:
        _check_depth(depth, descriptor)
        for entry in index.manifests:
            if entry.media_type not in mediatypes.MANIFESTS | mediatypes.INDEXES:
                self.blobs.setdefault(entry.digest, entry)
            elif entry.digest not in self.manifests:
                self.add(entry, self._source.read_manifest(entry), depth)


def run_copy(
    plan: Plan, source: ImageSource, sink: ImageSink, *, jobs: int = 3, watcher: Watcher | None = None
) -> None:
    """Copy what was planned, and commit it.

    Args:
        plan: what to copy.
        source: where it is.
        sink: where it goes; not closed here.
        jobs: how many blobs go at once, at least 1.
        watcher: told how it goes.

    Raises:
        PagepoolError: the first failure of any part. Nothing is committed.
    """
    watcher = watcher or SilentWatcher()
    root_descriptor, root = plan.root
    sink.begin(root)
    watcher.begin(plan.blobs)
    _Movers(plan.blobs, source, sink, watcher).run(jobs)
    for descriptor, manifest in plan.manifests[:-1]:
        sink.put_manifest(descriptor, manifest)
    sink.commit(root_descriptor, root)


class _Stopped(BaseException):
    """Ends a thread whose work is no longer wanted. Nobody's `except Exception` may swallow it."""


class _Movers:
    """The threads that move blobs: small pieces of state, all guarded by the queues."""

    def __init__(self, blobs: Sequence[Descriptor], source: ImageSource, sink: ImageSink, watcher: Watcher) -> None:
        self._source, self._sink, self._watcher = source, sink, watcher
        self._work: queue.SimpleQueue[Descriptor | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        # The largest first: the longest transfer should not be the last to begin.
        for blob in sorted(blobs, key=lambda blob: -blob.size):
            self._work.put(blob)
        self._count = len(blobs)

    def run(self, jobs: int) -> None:
        """Move everything; raise the first failure."""
        threads = [threading.Thread(target=self._loop, daemon=True) for _ in range(min(jobs, self._count))]
        try:
            # Ctrl-C may come between two starts, too: those that move already must not go on behind the caller's back.
            for thread in threads:
                self._work.put(None)
                thread.start()
            for _ in threads:
                if error := self._wait():
                    raise error
        except BaseException:
            self._stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join(_STOP_WAIT_S)
            raise

    def _wait(self) -> BaseException | None:
        """How the next thread has ended.

        A signal that comes just before the queue is waited for does not end the wait, nor does one that another thread
        was given: Python's handler runs when it is over.
        """
        while True:
            with suppress(queue.Empty):
                return self._ended.get(timeout=_LOOK_S)

    def _loop(self) -> None:
        try:
            while (blob := self._work.get()) is not None:
                if self._stop.is_set():
                    raise _Stopped
                self._move(blob)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits, which raises it
            self._ended.put(error)
        else:
            self._ended.put(None)

    def _move(self, blob: Descriptor) -> None:
        if mediatypes.is_foreign_layer(blob.media_type) and not self._source.has_blob(blob):
            self._watcher.finish(blob, False)  # may not be distributed: the other end does without it, too
            return
        copied = self._sink.put_blob(blob, partial(self._source.open_blob, blob), partial(self._progress, blob))
        self._watcher.finish(blob, copied)

    def _progress(self, blob: Descriptor, count: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._watcher.progress(blob, count)
