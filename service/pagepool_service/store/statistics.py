"""What the store holds, in bytes: logical, unique, stored by kind, and what opaque copies cost.

The totals are kept as they change (`totals`); blobs are counted by one scan of their records. Per image, the
layers' recipes are read.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pagepool.errors import CorruptError
from pagepool_service.store.cycle import is_collecting, last_summary
from pagepool_service.store.environment import Table
from pagepool_service.store.recompress import count_waiting
from pagepool_service.store.schema import BlobRecord, ContentKind, LayerRecord, LayerState
from pagepool_service.store.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pagepool_service.store.environment import Reader
    from pagepool_service.store.store import Store

log = logging.getLogger("pagepool.statistics")

_METADATA = (Table.BLOBS, Table.LAYERS, Table.MANIFESTS, Table.MANIFEST_LINKS, Table.LINKS, Table.TAGS)
_REST = (Table.REFERRERS, Table.JOBS, Table.TREES, Table.LEASES, Table.CORRECTIONS, Table.META)
# What nobody knows without the running totals.
_FROM_TOTALS = (
    *("frames", "extents", "frames_waiting", "unique_bytes", "stored_bytes", "dead_bytes"),
    *("dedup_ratio", "compression_ratio"),
)
_BLOB_FIGURES = (
    *("blobs", "blob_bytes", "pending_blobs", "unmountable_blobs"),
    *("opaque_copies_bytes", "rebuilt_blobs_bytes"),
)
_STORED_FROM_TOTALS = ("files", "opaque", "recipes", "page_rounding")


def _log_damage(error: CorruptError) -> None:
    log.error("not counted: %s", error)


def collect_totals(store: Store, on_damage: Callable[[CorruptError], object] = _log_damage) -> dict[str, Any]:
    """The figures of the whole store, bytes unless the name says otherwise.

    Args:
        on_damage: told of each record that cannot be read. It is not counted; what only such a record has is None.

    Returns:
        `plain_bytes`: of all layers, each counted once per distinct tar; `unique_bytes`: distinct file
        content; `stored`: what that takes, by kind; `frames_waiting`: frames of it that were not compressed
        once more yet; `collecting`: whether a cycle of collection runs, and `last_collection` what the one before did;
        `disk_bytes`: what the data directory takes on disk in all; `opaque_copies_bytes`: of it,
        compressed blobs kept beside the layers they hold; `rebuilt_blobs_bytes`: compressed blobs that are not kept.
    """
    with store.env.read() as txn:
        totals, known = _load_totals(txn, on_damage)
        blobs = _count_blobs(txn, on_damage)
        plain, files = _count_layers(txn, on_damage)
        beside = files_beside(store)
        stored = {
            "files": totals.files_stored,
            "opaque": totals.opaque_stored,
            "recipes": totals.recipes_stored,
            "index": txn.table_bytes(Table.EXTENTS) + txn.table_bytes(Table.OBJECTS),
            "metadata": sum(map(txn.table_bytes, _METADATA + _REST)),
            **beside,
        }
        pages = txn.used_bytes()
        counts = {
            "layers": txn.count(Table.LAYERS),
            "manifests": txn.count(Table.MANIFESTS),
            "tags": txn.count(Table.TAGS),
        }
        waiting = store.jobs.count(txn)
        frames_waiting = count_waiting(txn) if known else 0
        collecting, collected = is_collecting(txn), last_summary(txn)
    stored["page_rounding"] = max(0, pages - sum(stored.values()) + sum(beside.values()))
    file_bytes = store.env.file_bytes()
    figures: dict[str, Any] = {
        **counts,
        **blobs,
        "frames": totals.frames,
        "extents": totals.extents,
        "jobs_waiting": waiting,
        "frames_waiting": frames_waiting,
        "plain_bytes": plain,
        "file_bytes": files,
        "unique_bytes": totals.files_plain - totals.dead_bytes,
        "stored": stored,
        "stored_bytes": sum(stored.values()),
        "free_pages_bytes": max(0, file_bytes - pages),
        "disk_bytes": file_bytes + sum(beside.values()),
        "dead_bytes": totals.dead_bytes,
        "collecting": collecting,
        "dedup_ratio": _ratio(files, totals.files_plain),
        "compression_ratio": _ratio(totals.files_plain, totals.files_stored),
        "last_collection": _describe_collection(collected),
    }
    if not known:
        figures |= {**dict.fromkeys(_FROM_TOTALS), "stored": {**stored, **dict.fromkeys(_STORED_FROM_TOTALS)}}
    return figures


def _load_totals(txn: Reader, on_damage: Callable[[CorruptError], object]) -> tuple[Totals, bool]:
    """The running totals, and whether they could be read."""
    try:
        return Totals.load(txn), True
    except CorruptError as error:
        on_damage(error)
        return Totals(), False


def _describe_collection(summary: dict[str, Any] | None) -> dict[str, Any]:
    """What is told of the last cycle of collection; nothing if there was none."""
    if summary is None:
        return {}
    freed = {f"freed_{kind.replace(' ', '_')}": count for kind, count in summary.get("freed", {}).items()}
    names = (
        *("freed_frame_bytes", "freed_recipe_bytes", "frames_compacted", "punched_bytes", "space_after_bytes"),
        *("longest_hold_s", "seconds"),
    )
    ended = datetime.fromtimestamp(summary.get("ended_ns", 0) // 10**9, UTC).isoformat()
    return {"ended": ended, **freed, **{name: summary[name] for name in names if name in summary}}


def _count_layers(txn: Reader, on_damage: Callable[[CorruptError], object]) -> tuple[int, int]:
    """Bytes of all layers as tars, and of the files in them."""
    plain = files = 0
    for _, payload in txn.scan_all(Table.LAYERS):
        if isinstance(payload, CorruptError):
            on_damage(payload)
            continue
        layer = LayerRecord.decode(payload)
        plain += layer.plain_size
        files += layer.file_bytes
    return plain, files


def _count_blobs(txn: Reader, on_damage: Callable[[CorruptError], object]) -> dict[str, int]:
    """Blobs by what is known of them."""
    counted = dict.fromkeys(_BLOB_FIGURES, 0)
    for key, payload in txn.scan_all(Table.BLOBS):
        if isinstance(payload, CorruptError):
            on_damage(payload)
            continue
        record = BlobRecord.decode(payload, key.hex())
        counted["blobs"] += 1
        counted["blob_bytes"] += record.size
        counted["pending_blobs"] += record.state is LayerState.PENDING
        counted["unmountable_blobs"] += record.state is LayerState.UNMOUNTABLE
        if record.state is LayerState.READY and record.content is not ContentKind.RECIPE:
            counted["opaque_copies_bytes"] += record.size
        if record.content is ContentKind.RECIPE and record.encoder:
            counted["rebuilt_blobs_bytes"] += record.size
    return counted


def files_beside(store: Store) -> dict[str, int]:
    """Bytes that files take beside the database, by kind. No transaction tells of these."""
    directories = {"spool": store.data / "spool", "uploads": store.uploads, "rebuilt": store.rebuilt}
    return {kind: directory_bytes(path) for kind, path in directories.items()}


def directory_bytes(path: Path) -> int:
    """Bytes that the files of a directory take on disk."""
    total = 0
    for entry in path.iterdir() if path.is_dir() else ():
        try:
            total += entry.stat().st_blocks * 512
        except FileNotFoundError:  # settled or finished meanwhile
            continue
    return total


def _ratio(numerator: int, denominator: int) -> float:
    return round(numerator / denominator, 3) if denominator else 1.0
