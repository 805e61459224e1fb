"""What the stages of one check share: the store, what is asked, what is known to be good or bad, and recounts."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from pagepool.digest import Digest
    from pagepool_service.store.checks.findings import Findings
    from pagepool_service.store.checks.selection import Selection
    from pagepool_service.store.environment import Environment
    from pagepool_service.store.store import Store

THREADS = max(2, os.cpu_count() or 2)


@dataclass(slots=True)
class Context:
    """The state of a check in one process.

    Args:
        store: opened for reading, beside whoever writes.
        quick: leave content unread.
        selection: what to check of it, or None for everything.
        bad_frames: numbers of frames that cannot be read.
        verified: the first 8 bytes of the names of objects whose content was read and is right.
        recounted: totals as counted by this check, where `complete`.
        version: of the store when the check began.
    """

    store: Store
    findings: Findings
    quick: bool = False
    selection: Selection | None = None
    bad_frames: set[int] = field(default_factory=set)
    verified: set[int] = field(default_factory=set)
    recounted: Totals = field(default_factory=Totals)
    seen: dict[str, int] = field(default_factory=dict)
    version: int = 0
    complete: bool = True

    @property
    def env(self) -> Environment:
        """The store's environment."""
        return self.store.env

    def wants_blob(self, digest: Digest) -> bool:
        """Whether a blob is among what is to be checked."""
        return self.selection is None or digest in self.selection.blobs

    def wants_manifest(self, digest: Digest) -> bool:
        """Whether a manifest is among what is to be checked."""
        return self.selection is None or digest in self.selection.manifests

    def note_verified(self, digest: bytes) -> None:
        """An object's content was read and hashed."""
        self.verified.add(int.from_bytes(digest[:8], "big"))

    def is_verified(self, digest: bytes) -> bool:
        """Whether it was."""
        return int.from_bytes(digest[:8], "big") in self.verified
