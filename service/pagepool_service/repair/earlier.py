"""Bring back what an earlier repair took out, for want of a place that had it.

Which blobs that were is in the listings of the quarantine. Who had one is not believed of these: since then somebody
may have deleted it. A blob is fetched for the repositories that still have a manifest that lists it, as one that they
must have.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import CorruptError, InvalidError
from pagepool.oci import Index, parse_manifest
from pagepool_service.repair.catalogue import read_manifest
from pagepool_service.repair.fetching import fetch_blob
from pagepool_service.store.catalogue import link_key
from pagepool_service.store.checks.walk import walk_values
from pagepool_service.store.environment import Table
from pagepool_service.store.links import link
from pagepool_service.store.parts import may_lack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from pagepool_service.repair.context import Context
    from pagepool_service.store.environment import Reader, Writer


def taken_out(data: Path) -> set[Digest]:
    """The blobs that earlier repairs have quarantined, whatever became of them since."""
    found: set[Digest] = set()
    for listing in (data / "quarantine").glob("*/listing.jsonl"):
        with suppress(OSError):  # somebody removes it just now
            for line in listing.read_text(errors="replace").splitlines():
                with suppress(ValueError, KeyError, TypeError, InvalidError):  # a line that was cut off
                    entry = json.loads(line)
                    if entry["outcome"] == "quarantined" and entry["kind"] in ("blob", "link"):
                        found.add(Digest.parse(entry["name"].rpartition("@")[2]))
    return found


def bring_back(context: Context, blobs: Iterable[Digest]) -> None:
    """Fetch blobs that were taken out, where manifests still list them."""
    for digest, (size, repositories) in _missed(context, set(blobs)).items():
        names = sorted(repositories)
        images = tuple(sorted(f"{name}@{manifest}" for name, found in repositories.items() for manifest in found))
        if _is_whole(context, digest, size):
            how = "it was pushed again meanwhile; it is linked to the repository again"
        else:
            where = _fetch(context, digest, size, names)
            if where is None:
                continue
            how = f"it was in the quarantine, and was fetched from {where}"
        context.repaired("blob", str(digest), how, _linking(names, digest), images)


def _missed(context: Context, blobs: set[Digest]) -> dict[Digest, tuple[int, dict[str, list[Digest]]]]:
    """Of some blobs, those that a repository has no more and a manifest of it lists: size, repositories, manifests."""
    listed: list[tuple[Digest, Digest, int]] = []

    def visit(_txn: Reader, key: bytes, _value: memoryview) -> None:
        with suppress(InvalidError, CorruptError):
            manifest = Digest.from_key(key)
            stored = read_manifest(context, manifest)
            document = None if stored is None else parse_manifest(stored.raw, stored.media_type)
            if document is not None and not isinstance(document, Index):
                parts = (part for part in document.blobs if part.digest in blobs and not may_lack(part))
                listed.extend((manifest, part.digest, part.size) for part in parts)

    if blobs:
        walk_values(context.env, Table.MANIFESTS, visit)
    found: dict[Digest, tuple[int, dict[str, list[Digest]]]] = {}
    for manifest, blob, size in listed:
        for repository in context.manifest_holders(manifest):
            if context.value(Table.LINKS, link_key(repository, blob)) is None:
                found.setdefault(blob, (size, {}))[1].setdefault(repository, []).append(manifest)
    return found


def _fetch(context: Context, digest: Digest, size: int, repositories: list[str]) -> str | None:
    """A registry may have it in one repository only."""
    link_all = _linking(repositories, digest)
    found = (fetch_blob(context, digest, size, holder=name, also=link_all) for name in repositories)
    return next(filter(None, found), None)


def _is_whole(context: Context, digest: Digest, size: int) -> bool:
    """Whether somebody has pushed it to another repository."""
    record = context.blobs().get(digest)
    return record is not None and record.size == size


def _linking(repositories: list[str], digest: Digest) -> Callable[[Writer], None]:
    def apply(txn: Writer) -> None:
        for repository in repositories:
            link(txn, Table.LINKS, repository, digest)

    return apply
