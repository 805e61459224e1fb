"""What a client does: starts, page reads, writes, pushes; each is timed, and what it reads is compared.

Comparing costs as much as reading. It is left out of the durations, and counts in the throughput, since a client
does one thing after the other.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Final

from pagepool.load.recording import EXPECTED, Recorder
from pagepool.load.truth import PAGE, page_digest
from pagepool.load.versions import STATEMENT, VERSIONS, Version, parse_statement
from pagepool.load.writing import OverlayModel
from pagepool.load.zipf import Scatter, Zipf
from pagepool.oci import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pagepool.load.access import Access, Opened, Writable
    from pagepool.load.measures import Measures
    from pagepool.load.plan import LoadPlan
    from pagepool.load.recording import Target
    from pagepool.transport import RegistryClient

_PIECE: Final = 1 << 20
_CUTS, _SYNCS = 0.05, 0.02


class Operations:
    """What one client does. One thread.

    Args:
        plan: the load test.
        client: the number of this client.
        access: how images are read.
        registry: how versions are pushed.
        targets: the images.
        measures: where everything is counted.
    """

    def __init__(
        self,
        plan: LoadPlan,
        client: int,
        access: Access,
        registry: RegistryClient,
        targets: Sequence[Target],
        measures: Measures,
    ) -> None:
        self._plan, self._client, self._access, self._registry = plan, client, access, registry
        self._targets, self._measures = targets, measures
        self._record = Recorder(measures, client, plan.step_s)
        self._random = Random(f"{plan.seed}/{client}")
        self._first_page = [0]
        for target in targets:
            self._first_page.append(self._first_page[-1] + target.truth.pages)
        self._zipf = Zipf(max(1, self._first_page[-1]), plan.zipf, self._random)
        self._scatter = Scatter(max(1, self._first_page[-1]), plan.seed)
        self._overlay: tuple[Writable, OverlayModel, Target] | None = None
        self._overlays = self._pushed = 0
        self._started = False
        self.published: dict[int, int] = {}
        """The newest versions that others have pushed, by client; replaced as a whole, by another thread, too."""
        self.ready = 0
        """The newest version of this client that others can open."""
        self._seen: dict[int, int] = {}
        self.scheduled_ns = 0
        self.manifests: list[str] = []

    def begin(self) -> None:
        """Open what hot pages are read from, and begin to count time.

        Raises:
            PagepoolError, OSError: it cannot be.
        """
        if self._plan.mix.read:
            for target in self._targets:
                target.opened = self._access.open(target.reference)

    def start_clock(self) -> None:
        """Time in series counts from here."""
        self._record.start_clock()

    def run(self, name: str) -> bool:
        """Do one thing, by its name in the mix. Returns whether it succeeded."""
        doing: dict[str, Callable[[], None]] = {
            "start": self._start,
            "read": self._read,
            "write": self._write,
            "push": self._push,
        }
        try:
            doing[name]()
        except EXPECTED as error:
            self._record.fail(name, error)
            if name == "write":
                self._give_up()  # what an operation that failed has left is not known
            return False
        return True

    def finish(self) -> None:
        """Compare all that was written once more, after the overlay was closed and opened again; let go of it."""
        if self._overlay is None:
            return
        overlay, model, target = self._overlay
        try:
            overlay.close()
            again = self._access.open_overlay(target.reference, self._overlay_name)
            self._overlay = again, model, target
            self._compare_overlay()
        except EXPECTED as error:
            self._record.fail("reread", error)
        self._give_up()

    def close(self) -> None:
        """Let go of everything."""
        self._give_up()
        for target in self._targets:
            if target.opened is not None:
                with suppress(*EXPECTED):
                    target.opened.close()
                target.opened = None

    # -- reading ------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        place = self._scatter.place(self._zipf.draw())
        at = 0
        while place >= self._first_page[at + 1]:
            at += 1
        target = self._targets[at]
        file, offset = target.truth.locate(place - self._first_page[at])
        path = target.truth.path(file)
        if target.opened is None:
            target.opened = self._access.open(target.reference)
        before, began = self._access.requests(), self._now()
        data = target.opened.read(path, offset, PAGE)
        self._record.since("read", began, len(data))
        self._count_hit(before)
        self._record.check(target, file, offset, data, "read")

    def _start(self) -> None:
        """Start a container: of a version that was pushed since, if there is one, or of an image."""
        published = self.published
        newer = [
            client
            for client, number in published.items()
            if client != self._client and number > self._seen.get(client, 0)
        ]
        if newer and self._random.random() < 0.5:
            client = self._random.choice(newer)
            self._take(client, published[client])
            return
        target = self._random.choice(self._targets)
        began = self._now()
        opened = self._access.open(target.reference)
        spent = time.perf_counter_ns() - began
        try:
            spent += self._follow(target, opened, frozenset())
        finally:
            opened.close()
        self._record.took("start" if self._started else "first", spent, 0)
        self._started = True

    def _follow(self, target: Target, opened: Opened, replaced: frozenset[bytes]) -> int:
        """Read what a trace says. Returns how long that took, without comparing."""
        spent = 0
        for step in target.planned.trace:
            path = target.truth.path(step.file)
            if path in replaced:
                continue
            took = size = 0
            before = self._access.requests()
            for at in range(step.offset, max(step.offset + step.size, step.offset + 1), _PIECE):
                wanted = min(_PIECE, step.offset + step.size - at)
                began = time.perf_counter_ns()
                data = opened.read(path, at, wanted)
                took += time.perf_counter_ns() - began
                size += len(data)
                self._record.check_range(target, step.file, at, wanted, data, "start")
            self._record.took("file", took, size)
            self._count_hit(before)
            spent += took
        return spent

    # -- versions -----------------------------------------------------------------------------------------------

    def _push(self) -> None:
        version = Version(self._plan.base, self._plan.run, self._client, self._pushed + 1)
        size = len(version.layer) + len(version.config)
        expected = version.manifest.descriptor.digest
        began = self._now()
        digest = version.push(self._registry)
        self._record.since("push", began, size)
        self.manifests.append(str(digest))
        if digest != expected:
            self._record.wrong(str(version.reference), b"", 0, str(expected), str(digest), "push")
        self._pushed += 1
        with self._record.counted("ready"):
            opened = self._access.open(version.reference)
            self._record.since("ready", began, 0)
            try:
                self._check_version(opened, version, "push")
            finally:
                opened.close()
            self.ready = version.number

    def _take(self, client: int, published: int) -> None:
        """Start the newest version of a client, at least the one that is known to be published; compare its layer."""
        least = max(published, self._seen.get(client, 0))
        reference = Reference(VERSIONS, f"{self._plan.run}-{client}")
        with self._record.counted("take"):
            began = time.perf_counter_ns()
            opened = self._access.open(reference)
            spent = time.perf_counter_ns() - began
            try:
                statement = opened.read(STATEMENT, 0, 200)
                version = self._version_of(statement, client, least)
                if version is not None:
                    self._check_version(opened, version, "take")
                    replaced = frozenset(os.fsencode(path) for path in self._plan.base.replaced)
                    spent += self._follow(self._targets[0], opened, replaced)
                    self._seen[client] = version.number
            finally:
                opened.close()
            self._record.took("take", spent, 0)

    def _version_of(self, statement: bytes, client: int, least: int) -> Version | None:
        """The version that a statement is of; None, and wrong bytes, if it cannot be."""
        name = f"{VERSIONS}:{self._plan.run}-{client}"
        wanted = f"version {least} or newer of client {client}"
        try:
            run, who, number = parse_statement(statement)
        except ValueError:
            run, who, number = "", 0, 0
        if run == self._plan.run and who == client and number >= least:
            return Version(self._plan.base, run, client, number)
        self._record.wrong(name, STATEMENT, 0, wanted, repr(statement[:100]), "take")
        return None

    def _check_version(self, opened: Opened, version: Version, what: str) -> None:
        expected = version.manifest.descriptor.digest
        if opened.manifest != expected:
            self._record.wrong(str(version.reference), b"", 0, str(expected), str(opened.manifest), what)
        for path, content in version.files.items():
            found = opened.read(path, 0, len(content) + 1)
            self._measures.checked_pages += -(-len(content) // PAGE)
            if found != content:
                at = next(
                    (at for at, pair in enumerate(zip(found, content, strict=False)) if pair[0] != pair[1]),
                    min(len(found), len(content)),
                )
                page = at - at % PAGE
                expected_part, found_part = (page_digest(data[page : page + PAGE]).hex() for data in (content, found))
                self._record.wrong(str(version.reference), path, page, expected_part, found_part, what)

    # -- writing ------------------------------------------------------------------------------------------------

    @property
    def _overlay_name(self) -> str:
        return f"overlay-{self._overlays}"

    def _write(self) -> None:
        if self._overlay is not None and self._overlay[1].full:
            self._compare_overlay()
            self._give_up()
        if self._overlay is None:
            self._overlays += 1
            target = self._random.choice(self._targets)
            overlay = self._access.open_overlay(target.reference, self._overlay_name)
            self._overlay = overlay, OverlayModel(target.truth, self._random), target
        overlay, model, target = self._overlay
        chance = self._random.random()
        if chance < _CUTS and (cut := model.plan_cut()) is not None:
            path, size = cut
            self._learn(path, model.need_cut(path, size))
            began = self._now()
            overlay.truncate(path, size)
            self._record.since("write", began, 0)
            model.cut(path, size)
            self._reread(path, max(0, size - 1), 1)
            return
        path, offset, data = model.plan_write()
        self._learn(path, model.need(path, offset, len(data)))
        began = self._now()
        overlay.write(path, offset, data)
        self._record.since("write", began, len(data))
        model.wrote(path, offset, data)
        self._reread(path, offset, len(data))
        if chance > 1 - _SYNCS:
            began = time.perf_counter_ns()
            overlay.sync(path)
            self._record.since("sync", began, 0)

    def _learn(self, path: bytes, offsets: Sequence[int]) -> None:
        assert self._overlay is not None
        overlay, model, target = self._overlay
        for offset in offsets:
            began = time.perf_counter_ns()
            data = overlay.read(path, offset, PAGE)
            self._record.since("reread", began, len(data))
            self._measures.checked_pages += 1
            self._record.tell(model.learn(path, offset, data), target)

    def _reread(self, path: bytes, offset: int, size: int) -> None:
        assert self._overlay is not None
        overlay, model, target = self._overlay
        timed = _Timed(overlay)
        for wrong in model.check(path, offset, size, timed):
            self._record.tell(wrong, target)
        for began, ended, length in timed.reads:
            self._record.took("reread", ended - began, length)
        self._measures.checked_pages += len(timed.reads)

    def _compare_overlay(self) -> None:
        """Compare everything that was written to the overlay."""
        assert self._overlay is not None
        overlay, model, target = self._overlay

        def count(pages: int) -> None:
            self._measures.checked_pages += pages

        for wrong in model.check_all(overlay, count):
            self._record.tell(wrong, target)

    def _give_up(self) -> None:
        """Let go of the overlay, and remove it."""
        if self._overlay is not None:
            overlay, self._overlay = self._overlay[0], None
            with self._record.counted("write"):
                overlay.close()
            with self._record.counted("write"):
                self._access.discard(self._overlay_name)

    def _now(self) -> int:
        """When an operation began: with a rate, when it should have, so that waiting behind a slow one counts."""
        return self.scheduled_ns or time.perf_counter_ns()

    def _count_hit(self, before: int | None) -> None:
        """Count a read: a hit if it needed no request.

        Args:
            before: requests before it.
        """
        if before is not None:
            missed = self._access.requests() != before
            self._measures.hits += not missed
            self._measures.misses += missed


class _Timed:
    """An overlay that is read; remembers how long each read took."""

    def __init__(self, opened: Opened) -> None:
        self.manifest = opened.manifest
        self._opened = opened
        self.reads: list[tuple[int, int, int]] = []

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        began = time.perf_counter_ns()
        data = self._opened.read(path, offset, size)
        self.reads.append((began, time.perf_counter_ns(), len(data)))
        return data

    def close(self) -> None:
        self._opened.close()
