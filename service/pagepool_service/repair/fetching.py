"""Bring blobs in again: from other places, or from what is known of them here."""

from __future__ import annotations

import logging
import os
import secrets
from typing import TYPE_CHECKING

from pagepool.digest import Digest
from pagepool.errors import (
    CorruptError,
    DigestMismatchError,
    NotFoundError,
    PagepoolError,
    ResponseError,
    StoreFullError,
)
from pagepool.oci import Index, parse_manifest
from pagepool_service.repair.context import ChangedError
from pagepool_service.store.catalogue import StoredManifest, holder_key, link_key
from pagepool_service.store.checks.walk import walk_values
from pagepool_service.store.environment import Table
from pagepool_service.store.sums import Summer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pagepool_service.repair.context import Context
    from pagepool_service.store.environment import Reader, Writer

log = logging.getLogger("pagepool.repair")


def fetch_blob(
    context: Context,
    digest: Digest,
    size: int | None,
    before: Callable[[], None] = lambda: None,
    holder: str | None = None,
    also: Callable[[Writer], None] | None = None,
) -> str | None:
    """Take a blob in again from one of the places that were given.

    Args:
        size: bytes of it, if that is known.
        before: called once its bytes are here, and right, before it is taken in.
        holder: a repository that has it, though nothing but its own link says so.
        also: links it to repositories that do not have it, in the transaction that takes it in.

    Returns:
        where it was found; None if nowhere.

    Raises:
        ChangedError: the repositories that had it have deleted it meanwhile.
        UnreachableError, UnauthorizedError, StoreFullError: it is not known whether it could be had.
    """
    holders = [*([holder] if holder else []), *context.holders(digest)]
    size = find_size(context, digest) if size is None else size
    also = also or _still_held(holders, digest)
    for source in context.sources:
        pieces = source.blob(holders, digest, size)
        if pieces is not None and admit_blob(context, digest, pieces, before, also):
            return source.where
    return None


def admit_blob(
    context: Context,
    digest: Digest,
    pieces: Iterable[bytes],
    before: Callable[[], None] = lambda: None,
    also: Callable[[Writer], None] | None = None,
) -> bool:
    """Take a blob in, as the end of an upload does, if its bytes have its digest. Returns whether they do.

    In a dry run nothing is kept of them.

    Args:
        before: called when they do, before it is taken in.
        also: done in the transaction that takes it in; without it, it is seen to that those who have it have it still.

    Raises:
        ChangedError: they do not.
    """
    also = also or _still_held(context.holders(digest), digest)
    path = context.store.uploads / f"repair-{secrets.token_hex(8)}"
    summer = Summer(digest.algorithm)
    try:
        with path.open("wb") as file:
            for piece in _as_far_as_right(pieces):
                summer.update(piece)
                if not context.dry_run:
                    file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        sums = summer.sums()
        if sums.digest != digest:
            return False
        if not context.dry_run:
            before()
            context.store.blobs.admit(path, sums, also)
            context.jobs.add(digest)
    except OSError as error:
        raise StoreFullError(f"{path}: {error.strerror}") from error
    finally:
        path.unlink(missing_ok=True)
    return True


def _as_far_as_right(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """What comes of a blob, until its source says that it is wrong, or cannot read it.

    That the network or the disk fails is no such thing: then nothing is known, and nothing may be given up.
    """
    try:
        yield from pieces
    except (CorruptError, DigestMismatchError, NotFoundError, ResponseError, OSError) as error:
        log.info("a blob breaks off: %s", error)


def _still_held(holders: Sequence[str], digest: Digest) -> Callable[[Writer], None]:
    """What raises ChangedError where none of some repositories has a blob any more: nobody would ever remove it."""
    links = [key for name in holders for key in (link_key(name, digest), holder_key(name, digest))]

    def apply(txn: Writer) -> None:
        if links and not any(txn.has(Table.LINKS, key) for key in links):
            raise ChangedError

    return apply


def find_size(context: Context, digest: Digest) -> int | None:
    """What manifests say of the size of a blob."""
    sizes: list[int] = []

    def visit(txn: Reader, key: bytes, _value: memoryview) -> None:
        try:
            payload = txn.get(Table.MANIFESTS, key)
            if payload is None or sizes:
                return
            stored = StoredManifest.decode(Digest.from_key(key), payload)
            document = parse_manifest(stored.raw, stored.media_type)
        except PagepoolError:
            return
        if not isinstance(document, Index):
            sizes.extend(entry.size for entry in document.blobs if entry.digest == digest)

    walk_values(context.env, Table.MANIFESTS, visit)
    return sizes[0] if sizes else None
