"""The round: push every image, wait until the service has read it, pull it back, compare.

Uses the client library as any program would, over HTTP. After each image the service is asked what it holds,
so that what one image adds to the others before it is measured, not computed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagepool.digest import Digest
from pagepool.errors import BusyError, ManifestUnknownError
from pagepool.layout import Plan, open_sink, open_source, plan_copy, run_copy
from pagepool.layout.interface import ImageSource
from pagepool.oci import Descriptor, Manifest, Reference, mediatypes
from pagepool.transport import ImageState, RegistryClient, RegistrySink, RegistrySource, ServiceClient, Session
from pagepool.transport.service import PENDING
from pagepool_service.demo.progress import Narrator
from pagepool_service.demo.verify import Check, compare

_JOBS = 3
_SETTLE_TIMEOUT_S = 600.0
_POLL_S = 0.03


@dataclass(frozen=True, slots=True)
class Subject:
    """An image to go round.

    Args:
        path: of the layout or archive that it is in.
        name: which image there; None if there is only one.
        reference: what it is called in the registry.
    """

    path: Path
    name: str | None
    reference: Reference


@dataclass(slots=True)
class Visit:
    """What became of an image.

    Args:
        subject: the image.
        plan: its manifests and blobs.
        absent: blobs that its source does not have, and nobody expects.
        before: totals of the store before it was pushed.
        after: totals after it was pushed and read.
        state: ``ready`` or ``unmountable``; "" for what is no image.
        reason: why it is unmountable.
        checks: comparisons of what was pulled.
    """

    subject: Subject
    plan: Plan
    absent: tuple[Digest, ...] = ()
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    state: str = ""
    reason: str = ""
    checks: list[Check] = field(default_factory=list)


@dataclass(slots=True)
class _Bytes:
    """A watcher that passes on how many bytes went through."""

    narrator: Narrator

    def begin(self, blobs: Sequence[Descriptor]) -> None:
        """Nothing to do."""

    def progress(self, blob: Descriptor, count: int) -> None:  # noqa: ARG002 - the watcher's protocol
        """Count."""
        self.narrator.advance(count)

    def finish(self, blob: Descriptor, copied: bool) -> None:
        """Nothing to do."""


class Tour:
    """One round through a service.

    Args:
        session: connections to the service.
        narrator: told how it goes.
    """

    def __init__(self, session: Session, narrator: Narrator) -> None:
        self._registry = RegistryClient(session)
        self._service = ServiceClient(session)
        self._narrator = narrator

    def push(self, subject: Subject) -> Visit:
        """Push an image, and wait until nothing is left to do for it.

        Raises:
            PagepoolError: it cannot be read, pushed, or takes too long.
        """
        source = open_source(subject.path, subject.name)
        try:
            plan = plan_copy(source)
            visit = Visit(subject, plan, _absent(plan, source), before=self._totals())
            with self._narrator.step(f"push {subject.reference}", plan.size) as step:
                sink = RegistrySink(self._registry, subject.reference)
                run_copy(plan, source, sink, jobs=_JOBS, watcher=_Bytes(self._narrator))
                step.size, step.what = plan.size, "as pushed"
        finally:
            source.close()
        begin = time.perf_counter() - step.seconds
        with self._narrator.step("  until every layer was read and rebuilt") as step:
            state = self._wait_read(subject.reference)
            step.size = sum(layer.plain_size or 0 for layer in state.layers) if state else 0
            # Reading begins with the first blob that has arrived, so it is timed from the beginning of the push.
            step.what, step.rate_s = "plain since the push began", time.perf_counter() - begin
        visit.state, visit.reason = (state.state, state.reason) if state else ("", "")
        with self._narrator.step("  until everything was in its final place"):
            visit.after = self._wait_settled()
        return visit

    def pull(self, visit: Visit, directory: Path) -> None:
        """Pull an image into a layout of its own, below `directory`."""
        with self._narrator.step(f"pull {visit.subject.reference}", visit.plan.size) as step:
            source = RegistrySource(self._registry, visit.subject.reference)
            sink = open_sink(directory, "oci", visit.subject.reference.tag or "")
            try:
                run_copy(plan_copy(source), source, sink, jobs=_JOBS, watcher=_Bytes(self._narrator))
            finally:
                sink.close()
            step.size, step.what = visit.plan.size, "as pulled"

    def check(self, visit: Visit, directory: Path) -> None:
        """Compare what was pulled."""
        with self._narrator.step(f"compare {visit.subject.reference}") as step:
            counted: list[int] = []  # appending is atomic: several threads count
            visit.checks = compare(visit.plan, directory, visit.absent, counted.append)
            step.size, step.what = sum(counted), "hashed"

    def stats(self) -> Mapping[str, Any]:
        """The service's own figures."""
        return self._service.stats()

    def _totals(self) -> Mapping[str, Any]:
        total: Mapping[str, Any] = self._service.stats()["total"]
        return total

    def _wait_read(self, reference: Reference) -> ImageState | None:
        """Ask often, unlike `ServiceClient.wait`, which is polite: the time is to be told."""
        try:
            while (image := self._service.image(reference.repository, reference.target)).state == PENDING:
                time.sleep(_POLL_S)
        except ManifestUnknownError:
            return None  # an index without an image for this machine
        return image

    def _wait_settled(self) -> Mapping[str, Any]:
        deadline = time.monotonic() + _SETTLE_TIMEOUT_S
        while (total := self._totals()).get("jobs_waiting"):
            if time.monotonic() > deadline:
                raise BusyError(f"the service still has {total['jobs_waiting']} jobs after {_SETTLE_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)
        return total


def _absent(plan: Plan, source: ImageSource) -> tuple[Digest, ...]:
    """Layers that may not be distributed, where the source has none of them either."""
    foreign = (blob for blob in plan.blobs if mediatypes.is_foreign_layer(blob.media_type))
    return tuple(blob.digest for blob in foreign if not source.has_blob(blob))


def shared_blobs(visits: Sequence[Visit]) -> list[Descriptor]:
    """Layers that more than one image has as the very same blob."""
    seen: dict[Digest, set[int]] = {}
    blobs: dict[Digest, Descriptor] = {}
    for number, visit in enumerate(visits):
        for _, manifest in visit.plan.manifests:
            for layer in manifest.layers if isinstance(manifest, Manifest) else ():
                seen.setdefault(layer.digest, set()).add(number)
                blobs[layer.digest] = layer
    return [blobs[digest] for digest, numbers in seen.items() if len(numbers) > 1]
