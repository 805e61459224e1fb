"""Guesses what a container that starts will read, as long as nothing was learned of its image's starts.

What is guessed is what every program of that kind does: the dynamic loader opens the libraries that a file names, and
those that these name; a script begins with the name of its interpreter; programs look up users. So from before a mount
is made on, the program that is to be run comes with what it needs, while the runtime still prepares the container. What
comes along with small files that are missed is for `neighbours` to say.

Nothing waits for a guess that would not have waited for the object itself, and what is guessed wrongly is an object of
the image that has come early. What goes wrong is logged, and whoever reads what is missing finds out.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from itertools import islice
from typing import TYPE_CHECKING, Final

from pagepool.errors import PagepoolError
from pagepool.image.treefile import ROOT
from pagepool.node.elf import MAGIC, read_needs
from pagepool.node.neighbours import Neighbours, TreeMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pagepool.image.treefile import TreeFile
    from pagepool.node.source import Source
    from pagepool.node.sources import Sources

SECONDS: Final = 10.0
"""That a start may take: as long as starts are recorded."""
_MOST_BYTES: Final = 256 << 20
_MOST_OBJECTS: Final = 2048
"""That are looked at of one tree: who made it may want to keep a node busy."""
_MOST_PLACES: Final = 32
"""Where a program or a library is looked for."""
_THREADS: Final = 4
_DEFAULT_PATH: Final = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TABLES: Final = (b"/etc/passwd", b"/etc/group")
_LOADER_CACHE: Final = b"/etc/ld.so.cache"
_LIBRARIES: Final = (b"/lib", b"/usr/lib", b"/lib64", b"/usr/lib64", b"/usr/local/lib")
_MULTIARCH: Final = b"-linux-"
_FIRST_LINE: Final = 4096

log = logging.getLogger("pagepool.node")


class Start:
    """What is known of the starts of containers of one tree.

    Args:
        tree: has to stay open.
    """

    def __init__(self, tree: TreeFile) -> None:
        self._tree = tree
        self._until = 0.0
        self._lock = threading.Lock()
        self._begun = False
        self._looked_at: set[int] = set()
        self._bytes = _MOST_BYTES
        self._making = threading.Lock()
        self._maps: _Maps | None = None
        self.learned = False
        """Whether there is a profile: then nothing is guessed."""

    def begin(self) -> bool:
        """A container is about to start. Whether it is the first one."""
        with self._lock:
            self._until = max(self._until, time.monotonic() + SECONDS)
            is_first, self._begun = not self._begun, True
            return is_first

    def is_guessed(self) -> bool:
        """Whether a container starts just now of which nothing was learned."""
        return not self.learned and time.monotonic() < self._until

    def look_at(self, indices: Iterable[int]) -> list[int]:
        """Those objects that were not given to this before, as long as they are not too many or too large together."""
        new = []
        for index in indices:
            with self._lock:
                if index in self._looked_at or len(self._looked_at) >= _MOST_OBJECTS or self._bytes <= 0:
                    continue
                self._looked_at.add(index)
                self._bytes -= self._tree.object_key(index)[1]
            new.append(index)
        return new

    @property
    def places(self) -> TreeMap:
        """Where its objects are."""
        return self._made().places

    @property
    def neighbours(self) -> Neighbours:
        """What comes along."""
        return self._made().neighbours

    @property
    def libraries(self) -> tuple[bytes, ...]:
        """Where the loader looks for libraries."""
        return self._made().libraries

    def settle(self) -> None:
        """Let go of what is known of the tree, if no container starts: it is some hundred bytes for each file."""
        with self._making:
            if not self.is_guessed():
                self._maps = None

    def _made(self) -> _Maps:
        with self._making:
            if self._maps is None:
                self._maps = _Maps(self._tree)
            return self._maps


class _Maps:
    """What is known of a tree for as long as containers start. Takes about a microsecond for each file."""

    def __init__(self, tree: TreeFile) -> None:
        self.places = TreeMap(tree)
        self.neighbours = Neighbours(tree, self.places)
        found = (path + b"/" + name for path in _LIBRARIES for name in self.places.subdirectories(path))
        self.libraries = (*_LIBRARIES, *islice((path for path in found if _MULTIARCH in path), _MOST_PLACES))


class Guesses:
    """What is guessed of starts. Thread-safe.

    Args:
        sources: the trees.
        large: objects of more bytes are not fetched as a whole.
    """

    def __init__(self, sources: Sources, large: int) -> None:
        self._sources = sources
        self._large = large
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        for number in range(_THREADS):
            threading.Thread(target=self._work, name=f"node-guess-{number}", daemon=True).start()

    def begin(self, source: Source, programs: Sequence[str], config: str | None) -> None:
        """A container of a tree is about to start. Does not wait for anything.

        Args:
            programs: what is to be run, as far as that is known: paths, or names to be looked for.
            config: the image's configuration, if that is known.
        """
        if source.start.begin():
            self._tasks.put(lambda: self._begin(source, programs, config))

    def opened(self, source: Source, index: int) -> None:
        """A container that starts has opened an object, all of it or a part: bring what that needs."""
        if source.start.look_at([index]):
            self._tasks.put(lambda: self._follow(source, [index]))

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                task()
            except (PagepoolError, OSError) as error:
                log.info("what a start needs is not brought ahead: %s", error)
            except Exception:
                log.exception("guessing failed")

    def _begin(self, source: Source, programs: Sequence[str], config: str | None) -> None:
        self._sources.parts.await_answer(source.record.tree)
        if not source.start.is_guessed():
            return
        paths, search = of_config(programs, config)
        found = self._programs(source, paths, search)
        libraries = (path + b"/libc.so.6" for path in source.start.libraries)
        always = self._files(source, (_LOADER_CACHE, *libraries))
        self._follow(source, source.start.look_at(found), [*self._files(source, _TABLES), *found, *always])

    def _follow(self, source: Source, indices: Sequence[int], first: Sequence[int] = ()) -> None:
        """Bring some objects, or those that are to come first, and then what they need, and what that needs."""
        if not source.start.is_guessed():
            return
        self._bring(source, first or indices)
        while indices and source.start.is_guessed():
            needed = (one for index in indices for one in self._needs(source, index))
            indices = source.start.look_at(needed)
            self._bring(source, indices)

    def _bring(self, source: Source, indices: Iterable[int]) -> None:
        wanted = [index for index in indices if source.tree.object_key(index)[1] <= self._large]
        self._sources.bring_along(source, wanted)

    def _needs(self, source: Source, index: int) -> Iterator[int]:
        """The objects that a file names."""
        size = source.tree.object_key(index)[1]

        def read(start: int, end: int) -> bytes:
            return bytes(self._sources.read(source, index, start, end))

        head = read(0, min(size, _FIRST_LINE))
        if head.startswith(b"#!"):
            words = head[2:].partition(b"\n")[0].split()
            yield from self._programs(source, words[:2], _DEFAULT_PATH)
        if not head.startswith(MAGIC):
            return
        needs = read_needs(read, size)
        yield from self._files(source, [needs.interpreter] if needs.interpreter else [])
        directory, _ = source.start.places.place(index)
        for name in needs.libraries:
            if not source.start.is_guessed():
                return
            found = self._library(source, name, needs.directories, directory)
            if found >= 0:
                yield found

    def _files(self, source: Source, paths: Iterable[bytes]) -> list[int]:
        found = (source.start.places.object(source.start.places.find(path)[1]) for path in paths)
        return [index for index in found if index >= 0]

    def _programs(self, source: Source, names: Iterable[bytes], search: bytes) -> list[int]:
        found = []
        for name in names:
            paths = (
                [name] if b"/" in name else [directory + b"/" + name for directory in search.split(b":")[:_MOST_PLACES]]
            )
            found += self._files(source, paths)[:1]
        return found

    def _library(self, source: Source, name: bytes, directories: Iterable[bytes], own: int) -> int:
        for directory in directories:
            where = directory.replace(b"${ORIGIN}", b"$ORIGIN").replace(b"$ORIGIN", b".")
            start = own if where.startswith(b".") else ROOT
            index = source.start.places.object(source.start.places.find(where + b"/" + name, start)[1])
            if index >= 0:
                return index
        return next(iter(self._files(source, (path + b"/" + name for path in source.start.libraries))), -1)


def of_config(programs: Sequence[str], config: str | None) -> tuple[list[bytes], bytes]:
    """What may be run, and where it is looked for. Of a configuration that is none, nothing."""
    found = [name.encode(errors="surrogateescape") for name in programs]
    search = _DEFAULT_PATH
    for field in ("Entrypoint",) if found else ("Entrypoint", "Cmd"):
        found += [word.encode(errors="surrogateescape") for word in _words(config, field)[:1]]
    for variable in _words(config, "Env"):
        if variable.startswith("PATH="):
            search = variable[5:].encode(errors="surrogateescape")
    return found, search


def _words(config: str | None, field: str) -> list[str]:
    document = json.loads(config) if config else None
    run = document.get("config") if isinstance(document, dict) else None
    words = run.get(field) if isinstance(run, dict) else None
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []
