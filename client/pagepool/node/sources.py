"""The trees that a node has mounted, and the content of their objects: what the lazy mount asks for. Implements
`lazy.ObjectSource`.

An object is asked for by its digest alone. It is served if a tree that was mounted here has it, out of the repository
that the tree was mounted from last, with the credentials of who did; and if that fails, out of others that it was
mounted from (`elsewhere`). A tree whose last mount went is remembered for a while: a container may live on in a mount
namespace that the node does not see.

`bring` puts an object into the pool and gives it a second name, under which overlayfs looks next
(`pagepool.pool.custody`).

Thread-safe.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from pagepool.content.cache import WINDOW
from pagepool.errors import ObjectUnknownError, PagepoolError
from pagepool.image.treefile import TreeFile
from pagepool.linux.uncached import read_uncached
from pagepool.node.coming import Streams
from pagepool.node.elsewhere import Elsewhere
from pagepool.node.figures import LOOKUP, READ, Figures
from pagepool.node.inuse import ObjectsInUse
from pagepool.node.lazy import LARGE
from pagepool.node.parts import MIDDLE, Parts
from pagepool.node.records import SourceRecord, read_records, uptime_s, write_record
from pagepool.node.source import Patience, Source, is_down
from pagepool.pool.layout import object_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from pagepool.content import ObjectCache
    from pagepool.node.places import NodePlaces

_REMEMBERED_S: Final = 86400.0
_PROGRAM: Final = (b"\x7f", b"#")
"""How programs begin: ELF, and scripts."""

_Answer = TypeVar("_Answer")

log = logging.getLogger("pagepool.node")


class Sources:
    """The trees of a node.

    Args:
        places: of the node.
        cache: of the node's pool.
        timeout_s: about how long a request to a service may take, all attempts together.
        link: gives an object of the pool its second name: `Custody.link`.
        on_large: told of an object that is read through the lazy mount, and should become local: source, index.
        figures: counts what is fetched, and how long somebody waits for it.
        parts: what is read in parts while containers start.
        large: an object of more bytes is read through the lazy mount, whatever is known of it.
    """

    def __init__(
        self,
        places: NodePlaces,
        cache: ObjectCache,
        timeout_s: float,
        link: Callable[[bytes], bool],
        on_large: Callable[[Source, int], None] = lambda _source, _index: None,
        figures: Figures | None = None,
        parts: Parts | None = None,
        large: int = LARGE,
    ) -> None:
        self.parts = parts or Parts()
        self._large = large
        self._places = places
        self._cache = cache
        self._timeout_s = timeout_s
        self._link = link
        self._on_large = on_large
        self._figures = figures or Figures()
        self._lock = threading.Lock()
        self._sources: OrderedDict[str, Source] = OrderedDict()
        self._adding = threading.Lock()
        self._replaced: list[tuple[float, Source]] = []
        self._elsewhere = Elsewhere(places.sources)
        self._in_use = ObjectsInUse()
        self._lazy: dict[bytes, float] = {}
        self._streams = Streams()
        self._waiting: Counter[str] = Counter()  # by service
        self._patience = Patience(timeout_s)
        self.on_opened: Callable[[Source, int], None] = lambda _source, _index: None
        """Told of an object that may be a program, and was opened by a container that starts."""

    # -- which trees there are ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Take up what an earlier process has written down. A tree whose file is gone is left out, and logged."""
        records = list(read_records(self._places.sources, SourceRecord))
        own = {record.tree: record for record in records}  # the last one of a tree: see `elsewhere`
        for record in records:
            try:
                with self._adding:
                    if record is own[record.tree]:
                        self._add(record, noted=True)
                    else:
                        self._elsewhere.put(self._open(record), noted=True)
            except (OSError, PagepoolError) as error:
                log.error("tree %s of %s cannot be taken up again: %s", record.tree, record.image, error)

    def add(self, record: SourceRecord, *, asked: bool = True) -> Source:
        """Know a tree from now on; written down first. One that is known gets the new credentials.

        What is being fetched with the old ones goes on: a container may wait for it.

        Args:
            asked: whether the service has taken these credentials. If it could not be asked, a tree that is mounted
                keeps those that it has: its containers need them once the service is back.

        Raises:
            OSError, CorruptError: its tree file is not in its place.
        """
        with self._adding:
            known = self._sources.get(record.tree)
            if not asked and known is not None and not known.record.released:
                record = replace(known.record, image=record.image, manifest=record.manifest)
            return self._take_up(record) or self._add(record)

    def _add(self, record: SourceRecord, *, noted: bool = False) -> Source:
        former = self._sources.get(record.tree)
        if former is not None and former.record.place == record.place:
            manifest = record.manifest or former.record.manifest
            record = replace(record, lease=former.record.lease, manifest=manifest)
        source = self._open(record)
        self._index(source)
        if not noted:
            write_record(self._record(record.tree), record)
        with self._lock:
            before = self._sources.pop(record.tree, None)
            self._sources[record.tree] = source
            if before is not None:
                taken = self._elsewhere.take(record)
                replaced = [*([] if taken is None else [taken]), *self._put_elsewhere(before, record)]
                self._replaced += [(time.monotonic(), one) for one in replaced]
        return source

    def _open(self, record: SourceRecord) -> Source:
        tree = TreeFile.open(self._places.tree_files / record.tree)
        return Source(record, tree, self._cache, self._timeout_s, self._figures)

    def _put_elsewhere(self, before: Source, record: SourceRecord) -> list[Source]:
        """Go on asking where a tree came from that is mounted from another place now. Returns what is not needed."""
        if before.record.released or before.record.place == record.place:
            return [before]
        try:
            return self._elsewhere.put(before)
        except OSError as error:  # only another worker will not know of it
            log.warning("%s: that it came from %s, too, is not noted: %s", record.image, before.record.url, error)
            return self._elsewhere.put(before, noted=True)

    def _take_up(self, record: SourceRecord) -> Source | None:
        """The source that is known of a tree, if it comes from the same place with the same credentials."""
        with self._lock:
            known = self._sources.get(record.tree)
            if known is None or known.record.access != record.access:
                return None
            self._sources.move_to_end(record.tree)
        self._index(known)
        manifest = record.manifest or known.record.manifest  # the tree may be that of another image's first layers, too
        self.update(record.tree, image=record.image, manifest=manifest, released=record.released)
        return known

    def _index(self, source: Source) -> None:
        if not source.record.released:
            tree = source.tree
            keys = (tree.object_key(index)[0] for index in range(tree.object_count))
            self._in_use.add(source.record.tree, keys)

    def update(self, tree: str, **changes: object) -> None:
        """Change fields of a record; does nothing if the tree is not known."""
        with self._lock:
            source = self._sources.get(tree)
            if source is None:
                return
            changed = replace(source.record, **changes)  # type: ignore[arg-type]
            if changed == source.record:
                return
            source.record = changed
            write_record(self._record(tree), changed)
        if changed.released:
            self._in_use.remove(tree)
        else:
            self._index(source)

    def get(self, tree: str) -> Source | None:
        """A tree that is known."""
        return self._sources.get(tree)

    def all(self) -> list[Source]:
        """All that are known, those that were used last at the end."""
        with self._lock:
            return list(self._sources.values())

    def forget_released(self) -> list[Source]:
        """Forget the trees whose last mount went long ago; they are closed. Of others, what only their starts need."""
        now = uptime_s()
        for source in self.all():
            source.start.settle()
        self._in_use.settle()
        with self._adding:  # one that is mounted again just now is known either before, and stays, or anew
            with self._lock:
                old = [one for since, one in self._replaced if since < time.monotonic() - _REMEMBERED_S]
                self._replaced = [pair for pair in self._replaced if pair[1] not in old]
                gone = [
                    one
                    for one in self._sources.values()
                    if one.record.released and one.record.released < now - _REMEMBERED_S
                ]
                for one in gone:
                    del self._sources[one.record.tree]
                    old += self._elsewhere.forget(one.record.tree)
            for one in gone:
                self._record(one.record.tree).unlink(missing_ok=True)
        for one in (*gone, *old):
            one.close()
        return gone

    def close_expired(self) -> None:
        """Close the connections of trees that nobody has asked anything of for some seconds: a tree is remembered for a
        day, and its connections would be held as long."""
        with self._lock:
            replaced = [source for _, source in self._replaced]
            sources = [*self._sources.values(), *replaced, *self._elsewhere.all()]
        for source in sources:
            source.session.close_expired()

    def close(self) -> None:
        """End all connections; what is written down stays."""
        with self._lock:
            sources = [*self._sources.values(), *self._elsewhere.all()]
        for source in sources:
            source.close()

    def busy(self) -> bool:
        """Whether somebody waits for an object just now, of a service that can be reached as far as is known."""
        with self._lock:
            return any(count and not self._patience.is_down(url) for url, count in self._waiting.items())

    def prefetch(
        self,
        source: Source,
        wanted: Mapping[int, Collection[int] | None],
        on_expected: Callable[[], None] = lambda: None,
    ) -> None:
        """Fetch objects in one streamed request, before or while they are asked for. Blocks.

        Whoever asks for one of them meanwhile waits for the stream instead of asking a second time.

        Args:
            wanted: by the place of an object in the tree, which of its extents; None: all.
            on_expected: called when whoever asks for one of them would wait.

        Raises:
            PagepoolError, OSError: not all of them could be had.
        """
        coming = self._streams.expect(source, wanted)
        try:
            on_expected()
            with source.noting():
                source.content.prefetch_parts(wanted, lambda digest: coming[digest].here.set())
        finally:
            self._streams.end(coming)

    # -- what the lazy mount asks ------------------------------------------------------------------------------

    def size(self, digest: bytes) -> int | None:
        """The bytes of an object; None if no tree here has it."""
        for source, index in self._find(digest):
            return source.tree.object(index).size
        return None

    def bring(self, digest: bytes) -> bool:
        """Bring an object into the pool, and give it a second name. Blocks.

        Returns:
            False if no tree here has it, or the pool does not take it.

        Raises:
            PagepoolError, OSError: it cannot be had.
        """
        error: Exception | None = None
        with self._figures.waiting(LOOKUP):
            for source, index in self._find(digest):
                try:
                    return self._ask(source, partial(self._bring, source, index, digest))
                except (PagepoolError, OSError) as caught:
                    error = error or caught
            if error is not None:
                raise error
            return False

    def _ask(self, source: Source, question: Callable[[], _Answer]) -> _Answer:
        with self._waits(source.record.url), source.noting():
            return self._patience.ask(source.record.url, question, source.session)

    def _bring(self, source: Source, index: int, digest: bytes) -> bool:
        self.parts.await_answer(source.record.tree)
        self._streams.wait(source, index, digest)
        if source.start.is_guessed() and source.content.whole(index) is None:
            ended = self._bring_with_neighbours(source, index)
            self._streams.wait(source, index, digest)
            if source.content.whole(index) is None:
                ended()
        size = source.tree.object(index).size
        # What is open here is not evicted before it is linked.
        view = source.content.view(index, 0, min(size, 1))
        if source.content.whole(index) is None:
            source.content.prefetch([index])
        linked = source.content.whole(index) is not None and self._link(digest)
        if source.start.is_guessed() and bytes(view[:1]) in _PROGRAM:
            self.on_opened(source, index)
        view.release()
        return linked

    def _bring_with_neighbours(self, source: Source, index: int) -> Callable[[], None]:
        """Ask for an object, and with it for what is likely to be opened next. Who waits for it does not for those.

        Returns:
            waits for the end of all that, and raises if the service could not be reached: then it need not be asked
            again at once.
        """
        try:
            along = source.start.neighbours.next(index)
        except Exception:  # a help that fails is none, and no error
            log.exception("%s: nothing comes along", source.record.image)
            along = []
        wanted = dict.fromkeys((index, *self._absent(source, along)))
        ready = threading.Event()
        down: list[PagepoolError] = []

        def work() -> None:
            try:
                self.prefetch(source, wanted, ready.set)
            except (PagepoolError, OSError) as error:  # who opens one of them finds out
                if isinstance(error, PagepoolError) and is_down(error):
                    down.append(error)
                    return
                log.info("%s: what was to come along does not: %s", source.record.image, error)
            finally:
                ready.set()

        def end() -> None:
            thread.join()
            if down:
                raise down[0]

        thread = threading.Thread(target=work, name="node-bring", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there are too many threads: nothing comes along
            return lambda: None
        ready.wait()
        return end

    def _absent(self, source: Source, indices: Iterable[int]) -> list[int]:
        """Those objects that are neither here nor on their way."""
        keys = ((index, source.tree.object_key(index)[0]) for index in indices)
        return [index for index, digest in keys if digest not in self._streams and source.content.whole(index) is None]

    def bring_along(self, source: Source, indices: Iterable[int]) -> None:
        """Fetch objects that are neither here nor on their way, in one stream and in this order. Blocks.

        Raises:
            PagepoolError, OSError: not all of them could be had.
        """
        wanted = self._absent(source, indices)
        if wanted:
            self.prefetch(source, dict.fromkeys(wanted))

    def read(self, source: Source, index: int, start: int, end: int) -> memoryview:
        """Bytes of an object; those that are on their way are waited for. Blocks. Raises as `view`."""
        return self._read_part(source, index, source.tree.object_key(index)[0], start, end)

    @contextlib.contextmanager
    def _waits(self, url: str) -> Iterator[None]:
        with self._lock:
            self._waiting[url] += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting[url] -= 1

    def view(self, digest: bytes, start: int, end: int) -> memoryview:
        """Bytes of an object; blocks while they are fetched.

        Raises:
            ObjectUnknownError: no tree here has it.
            PagepoolError, OSError: they cannot be had.
        """
        self.parts.read(digest, start, end)
        with self._figures.waiting(READ):
            return self._view(digest, start, end)

    def _view(self, digest: bytes, start: int, end: int) -> memoryview:
        whole = self._read_whole(digest, start, end)
        if whole is not None:
            return whole
        error: Exception = ObjectUnknownError(digest.hex())
        for source, index in self._find(digest):
            try:
                return self._ask(source, partial(self._read_part, source, index, digest, start, end))
            except (PagepoolError, OSError) as caught:
                error = caught
        raise error

    def _read_part(self, source: Source, index: int, digest: bytes, start: int, end: int) -> memoryview:
        self._streams.wait_for_part(source, index, digest, start, end)
        # What other starts have read is here or coming, and what they have not may be all that is read now.
        around = 1 if self.parts.is_partial(digest) else WINDOW
        return source.content.view(index, start, end, around)

    def in_parts(self, digest: bytes, size: int) -> bool:
        """Whether an object that is not large is to be read through the lazy mount, too. See `parts`."""
        return size > MIDDLE and self.parts.serves(digest, [source.record.tree for source, _ in self._find(digest)])

    def opened_large(self, digest: bytes) -> None:
        """An object is read through the lazy mount: have it brought in as a whole, at once if it is not large and
        nobody knows which parts of it are read."""
        self.parts.met(digest)
        for source, index in self._find(digest):
            if source.start.is_guessed():
                self.on_opened(source, index)
            if source.tree.object_key(index)[1] <= self._large and not self.parts.is_partial(digest):
                self._bring_behind(source, index, digest)
            break
        self._note_lazy(digest)

    def _note_lazy(self, digest: bytes) -> None:
        with self._lock:
            self._lazy.setdefault(digest, math.inf)
        for source, index in self._find(digest):
            self._on_large(source, index)
            return

    def _bring_behind(self, source: Source, index: int, digest: bytes) -> None:
        """Bring an object in while it is read: who wants a part of it waits for that part."""
        if digest in self._streams:
            return
        coming = self._streams.expect(source, {index: None})

        def bring() -> None:
            try:
                with source.noting():
                    source.content.prefetch([index])
                if source.content.whole(index) is not None:
                    self.note_whole(digest)
            except (PagepoolError, OSError) as error:  # who reads it finds out
                log.info("object %s does not come as a whole: %s", digest.hex(), error)
            finally:
                self._streams.end(coming)

        try:
            threading.Thread(target=bring, name="node-bring", daemon=True).start()
        except RuntimeError:  # there are too many threads: whoever reads it fetches what he reads
            self._streams.end(coming)

    def take_up_lazy(self, digests: Iterable[bytes]) -> None:
        """An earlier process served these objects through the lazy mount."""
        for digest in digests:
            self._note_lazy(digest)

    def note_whole(self, digest: bytes) -> None:
        """An object is whole now: mounts that are made from here on do not read it through the lazy mount."""
        with self._lock:
            if self._lazy.get(digest) == math.inf:
                self._lazy[digest] = uptime_s()

    def has(self, digest: bytes) -> bool:
        """Whether a tree that is mounted, or was a moment ago, has an object. Takes no time, and no lock."""
        return digest in self._in_use

    def forget(self, digest: bytes) -> None:
        """Let go of an object that is open here: it was damaged."""
        for source, index in self._find(digest):
            source.content.forget(index)

    def forgotten(self, digest: bytes) -> None:
        """No mount reads an object through the lazy mount any more."""
        with self._lock:
            self._lazy.pop(digest, None)

    def lazy_wholes(self) -> frozenset[bytes]:
        """The objects that are read through the lazy mount, though they are whole."""
        with self._lock:
            return frozenset(digest for digest, whole in self._lazy.items() if whole != math.inf)

    def lazy_objects(self) -> list[bytes]:
        """The objects that were read through the lazy mount."""
        with self._lock:
            return list(self._lazy)

    def lazily_read(self, source: Source, since: float) -> int:
        """How many objects of a tree a mount may read through the lazy mount: those that were, and were not whole when
        it was made.

        Args:
            since: when the mount was made (`uptime_s`).
        """
        with self._lock:
            lazy = [digest for digest, whole in self._lazy.items() if whole > since]
        return sum(source.tree.find_object(digest) >= 0 for digest in lazy)

    def _read_whole(self, digest: bytes, start: int, end: int) -> memoryview | None:
        """Bytes of an object that is whole in the pool, without leaving more of it in memory: the kernel keeps pages of
        its own of what it is given."""
        try:
            descriptor = os.open(self._places.objects / object_name(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        buffer = bytearray(end - start)
        try:
            got = read_uncached(descriptor, buffer, start)
        finally:
            os.close(descriptor)
        return memoryview(buffer) if got == len(buffer) else None

    def _find(self, digest: bytes) -> list[tuple[Source, int]]:
        """The trees that have an object, and where: those that are mounted first, other places that they came from
        last."""
        found = [(source, source.tree.find_object(digest)) for source in reversed(self.all())]
        having = sorted(
            ((source, index) for source, index in found if index >= 0), key=lambda pair: bool(pair[0].record.released)
        )
        with self._lock:
            others = [(other, index) for source, index in having for other in self._elsewhere.of(source.record.tree)]
        return having + others

    def _record(self, tree: str) -> Path:
        return self._places.sources / f"{tree}.json"
