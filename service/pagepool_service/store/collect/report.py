"""What a cycle of collection did, and why it kept the rest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

FREED = ("tags", "manifests", "links", "blobs", "layers", "recipes", "objects", "extents", "frames", "spool files")
"""Kinds that are counted in `Report.freed`, in order; further ones are of the caches beside the store."""


@dataclass(slots=True)
class Report:
    """Counts of one cycle.

    Args:
        dry: nothing was changed; `freed` and the bytes say what would be.
        freed: records removed, by kind.
        tags: in a dry run: what would go of tags, as NAME:TAG; by repository.
        kept: records that were looked at and kept, by the reason.
        frame_bytes: stored bytes of the frames that were removed, of those that were compacted before, less after.
        recipe_bytes: stored bytes of recipes that were removed.
        compacted: frames whose living extents were moved.
        dead_kept: plain bytes that nothing needs, in frames that are not worth moving.
        punched: bytes of free database pages that were given back to the file system.
        space_before: bytes that the data directory took on the disk.
        space_after: when it was done.
        writes: write transactions; and the longest of them, in seconds, with its commit, and the longest without.
        problems: what kept it from removing something, for people.
        damaged: whether one of these is a damaged record.
    """

    dry: bool = False
    freed: Counter[str] = field(default_factory=Counter)
    tags: list[str] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    frame_bytes: int = 0
    recipe_bytes: int = 0
    compacted: int = 0
    dead_kept: int = 0
    punched: int = 0
    space_before: int = 0
    space_after: int = 0
    writes: int = 0
    longest_hold_s: float = 0.0
    longest_work_s: float = 0.0
    seconds: float = 0.0
    ended_ns: int = 0
    problems: list[str] = field(default_factory=list)
    damaged: bool = False

    def note_damage(self, problem: str) -> None:
        """A record cannot be read, and what it may need was kept."""
        self.problems.append(f"{problem} (pagepool fsck)")
        self.damaged = True

    def to_json(self) -> dict[str, Any]:
        """As JSON; sizes are bytes."""
        return {
            "dry_run": self.dry,
            "freed": {kind: count for kind, count in self.freed.items() if count},
            **({"tags": self.tags} if self.dry else {}),
            "freed_frame_bytes": self.frame_bytes,
            "freed_recipe_bytes": self.recipe_bytes,
            "frames_compacted": self.compacted,
            "kept": {reason: count for reason, count in self.kept.items() if count},
            "dead_bytes_kept": self.dead_kept,
            "punched_bytes": self.punched,
            "space_before_bytes": self.space_before,
            "space_after_bytes": self.space_after,
            "write_transactions": self.writes,
            "longest_hold_s": round(self.longest_hold_s, 6),
            "longest_work_s": round(self.longest_work_s, 6),
            "seconds": round(self.seconds, 3),
            "ended_ns": self.ended_ns,
            "problems": self.problems,
        }
