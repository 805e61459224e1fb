"""What the demo found, as tables for people or as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagepool.cli import output
from pagepool.cli.output import human_size
from pagepool_service.demo.progress import Step
from pagepool_service.demo.reading import Reading
from pagepool_service.demo.tour import Visit, shared_blobs
from pagepool_service.demo.verify import Check

_KINDS = {
    "files": "file content, each piece once, zstd",
    "opaque": "exact copies of compressed layers",
    "recipes": "recipes that rebuild the tars",
    "index": "index of the pieces",
    "metadata": "records, and the database's own pages",
}
_MANY = {"manifest": "manifests", "config": "configs", "layer": "layers", "blob": "other blobs", "diff_id": "diff_ids"}


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image in figures, bytes; of a row for all images, without doubles.

    Args:
        name: its reference.
        state: ``ready``, or ``unmountable``; "" if it is no image.
        logical_bytes: of its layers' tars.
        pushed_bytes: of its blobs and manifests, as they went over the network.
        unique_bytes: of distinct file content in it.
        new_bytes: of it, what no image pushed before has (pieces of 128 KiB).
        stored_bytes: by which it made the store larger.
    """

    name: str
    state: str
    logical_bytes: int
    pushed_bytes: int
    unique_bytes: int
    new_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the demo found.

    Args:
        images: one row each, in the order in which they were pushed.
        total: the row of all.
        stored: bytes of the store by kind.
        disk_bytes: of the whole data directory, on disk.
        same_blob_bytes: of layers that several images have as the very same blob, plain.
        shared_bytes: of file content in the last image that another one has too.
        checks: all comparisons.
        steps: in order.
        seconds: the demo in all.
        reading: what reading the images has shown; None if none could be read.
    """

    images: tuple[ImageRow, ...]
    total: ImageRow
    stored: Mapping[str, int]
    disk_bytes: int
    same_blob_bytes: int
    shared_bytes: int
    checks: tuple[Check, ...]
    steps: tuple[Step, ...]
    seconds: float
    reading: Reading | None = None

    @property
    def equal(self) -> bool:
        """Whether everything came back as it was pushed."""
        return all(check.equal for check in self.checks)


def build_report(
    visits: Sequence[Visit],
    stats: Mapping[str, Any],
    steps: Sequence[Step],
    seconds: float,
    reading: Reading | None = None,
) -> Report:
    """Put together what was measured. Pure."""
    described = {(image["name"], image["tag"]): image for image in stats["images"]}
    entries = [described[visit.subject.reference.repository, visit.subject.reference.target] for visit in visits]
    rows = tuple(_row(visit, entry) for visit, entry in zip(visits, entries, strict=True))
    total = stats["total"]
    pushed = {blob.digest: blob.size for visit in visits for blob in visit.plan.blobs}
    pushed |= {entry.digest: entry.size for visit in visits for entry, _ in visit.plan.manifests}
    whole = ImageRow(
        name="all" if len(rows) != 2 else "both",
        state="",
        logical_bytes=sum(row.logical_bytes for row in rows),
        pushed_bytes=sum(pushed.values()),
        unique_bytes=total["unique_bytes"],
        new_bytes=total["unique_bytes"],
        stored_bytes=total["stored_bytes"],
    )
    return Report(
        rows,
        whole,
        _by_kind(total["stored"]),
        total["disk_bytes"],
        sum(blob.size for blob in shared_blobs(visits)),
        entries[-1].get("shared_bytes", 0),
        tuple(check for visit in visits for check in visit.checks),
        tuple(steps),
        seconds,
        reading,
    )


def _row(visit: Visit, entry: Mapping[str, Any]) -> ImageRow:
    return ImageRow(
        name=str(visit.subject.reference),
        state=visit.state,
        logical_bytes=entry["logical_bytes"],
        pushed_bytes=visit.plan.size,
        unique_bytes=entry["unique_bytes"],
        new_bytes=visit.after["unique_bytes"] - visit.before["unique_bytes"],
        stored_bytes=visit.after["stored_bytes"] - visit.before["stored_bytes"],
    )


def _by_kind(stored: Mapping[str, int]) -> dict[str, int]:
    """The kinds people are told of; all small ones count as metadata, so that the sum is the whole."""
    kinds = {name: size for name, size in stored.items() if name in _KINDS}
    kinds["metadata"] = kinds.get("metadata", 0) + sum(size for name, size in stored.items() if name not in _KINDS)
    return kinds


def print_report(report: Report) -> None:
    """Print the tables."""
    columns = ("IMAGE", "LOGICAL", "AS PUSHED", "FILES", "NEW", "STORED")
    cells = [
        (row.name, *map(human_size, (row.logical_bytes, row.pushed_bytes, row.unique_bytes)), *_added(row))
        for row in report.images
    ]
    whole = report.total
    cells.append((whole.name, *map(human_size, (whole.logical_bytes, whole.pushed_bytes, whole.unique_bytes)), "", ""))
    cells[-1] = (*cells[-1][:5], human_size(whole.stored_bytes))
    output.print_table(columns, cells, right=range(1, 6))
    output.print_line(
        "\nLOGICAL: the layers' tars. AS PUSHED: as it goes over the network. FILES: distinct file content."
        "\nNEW: of it, what no image before had. STORED: by how much the store grew."
    )
    _print_kinds(report)
    output.print_line()
    _print_checks(report)


def _added(row: ImageRow) -> tuple[str, str]:
    return human_size(row.new_bytes), f"+{human_size(row.stored_bytes)}"


def _print_kinds(report: Report) -> None:
    output.print_line(f"\nStored in all, {human_size(report.total.stored_bytes)}:")
    for name, size in sorted(report.stored.items(), key=lambda item: -item[1]):
        output.print_line(f"  {human_size(size):>9}  {_KINDS[name]}")


def _print_checks(report: Report) -> None:
    counted = Counter(check.kind for check in report.checks)
    bad = [check for check in report.checks if not check.equal]
    listed = ", ".join(f"{count} {_MANY[kind] if count != 1 else kind}" for kind, count in counted.items())
    if not bad:
        output.print_line(f"Compared after the pull: {listed}. Every digest is equal.")
    for check in bad:
        output.print_line(f"DIFFERENT: {check.kind} {check.name}: expected {check.expected}, got {check.got}")
    for row in report.images:
        if row.state == "unmountable":
            output.print_line(f"{row.name} is stored and served, but cannot be mounted.")


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON: sizes in bytes, times in seconds."""
    return {
        "equal": report.equal,
        "seconds": round(report.seconds, 3),
        "images": [_row_json(row) for row in report.images],
        "total": _row_json(report.total) | {"disk_bytes": report.disk_bytes, "stored": dict(report.stored)},
        "reading": None if report.reading is None else report.reading.as_json(),
        "shared": {"same_blob_bytes": report.same_blob_bytes, "file_bytes": report.shared_bytes},
        "checks": [
            {
                "kind": check.kind,
                "name": check.name,
                "expected": check.expected,
                "got": check.got,
                "equal": check.equal,
            }
            for check in report.checks
        ],
        "steps": [
            {
                "title": step.title.strip(),
                "seconds": round(step.seconds, 4),
                "bytes": step.size or None,
                "bytes_per_second": round(step.rate) if step.rate else None,
            }
            for step in report.steps
        ],
    }


def _row_json(row: ImageRow) -> dict[str, Any]:
    fields = ("name", "state", "logical_bytes", "pushed_bytes", "unique_bytes", "new_bytes", "stored_bytes")
    return {name: getattr(row, name) for name in fields}
