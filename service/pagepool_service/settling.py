"""Move a blob's bytes out of the spool: into frames as they came, or nowhere, if its layer makes them again.

Owns nothing: the blob's record says where its bytes are, and is changed by whoever calls, once they are there. What a
crash leaves are extents in frames that the blob will have when it is settled again.
"""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError
from pagepool.extents import EXTENT_SIZE, Role, check_extent, encode_frame
from pagepool_service.encoders import candidates, in_background, probe, remake
from pagepool_service.store.rebuild import rebuild
from pagepool_service.store.schema import LayerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool.digest import Digest
    from pagepool_service.encoders import Encoder
    from pagepool_service.store.schema import BlobRecord, LayerRecord
    from pagepool_service.store.store import Store

# Of a frame of a blob as it came. Its data is a multiple of a page, so its head takes a page more, whatever is in it.
_OPAQUE_EXTENTS = 4
_BATCH = 64  # extents moved in one transaction: 8 MiB


_MOST_COMPARED = 3  # encoders that make such a beginning, and are tried with all of a blob


class PutOffError(Exception):
    """Something else has to be done first."""


def find_encoder(
    store: Store, blob: Digest, record: BlobRecord, is_wanted: Callable[[], bool] = lambda: False
) -> Encoder | None:
    """The encoder that makes the whole blob out of its layer again, or None. Runs at the encoder's speed.

    Args:
        is_wanted: asked now and then whether whoever calls is needed elsewhere.

    Raises:
        CorruptError: what is stored of the layer, or the blob's own bytes, are damaged.
        EncoderMissingError: an encoder cannot be run.
        PutOffError: `is_wanted`.
    """
    with store.env.read() as txn:
        layer = store.blobs.layer(txn, record)
        extents = store.extents.object_record(txn, record.object, record.size)
    if layer is None:
        return None
    plain = probe(partial(rebuild_head, store, layer), layer.plain_size)
    head = b"".join(store.blobs.read(blob, 0, min(len(plain) + EXTENT_SIZE, record.size)))

    def look() -> None:
        if is_wanted():
            raise PutOffError

    whole = partial(rebuild, store.env, store.extents, layer.recipe, 0, layer.plain_size)
    names = [name for _, name in extents.extents()]
    with in_background():
        for encoder in islice(candidates(head, plain, layer.plain_size, look), _MOST_COMPARED):
            made = remake(encoder, whole, names, str(blob), look)
            try:
                if sum(map(len, made)) == record.size:
                    return encoder
            except CorruptError as error:
                if error.kind != "blob":  # what it is made out of
                    raise
    return None


def rebuild_head(store: Store, layer: LayerRecord, size: int) -> bytes:
    """The first bytes of a layer's tar."""
    return b"".join(rebuild(store.env, store.extents, layer.recipe, 0, size))


def move_into_frames(store: Store, blob: Digest, record: BlobRecord) -> None:
    """Store a blob's bytes as opaque extents, each once. They stay in the spool, too.

    Raises:
        CorruptError: the bytes in the spool are not what was pushed.
        StoreFullError: there is no room for both.
    """
    with store.env.read() as txn:
        extents = store.extents.object_record(txn, record.object, record.size)
        names = [digest for _, digest in extents.extents()]
    # Gzip and zstd streams do not get smaller; what is not a layer may.
    compress = record.state is not LayerState.READY
    pieces = store.blobs.read(blob)
    batch: list[tuple[bytes, bytes]] = []
    for number, digest in enumerate(names, 1):
        piece = next(pieces, b"")
        check_extent(digest, piece, f"piece {number} of {blob}")
        batch.append((digest, piece))
        if len(batch) == _BATCH or number == len(names):
            _store_batch(store, batch, compress)
            batch = []


def _store_batch(store: Store, batch: list[tuple[bytes, bytes]], compress: bool) -> None:
    extents = store.extents
    with store.env.read() as reader:
        # Compared, not only looked up: the spool file that could mend a damaged extent goes when this is done.
        new = {digest: data for digest, data in batch if not extents.is_sound(reader, digest)}
    listed = list(new.items())
    groups = [listed[index : index + _OPAQUE_EXTENTS] for index in range(0, len(listed), _OPAQUE_EXTENTS)]
    frames = [encode_frame(group, Role.OPAQUE, compress=compress) for group in groups]
    # Nothing is held against the quota: as much leaves the spool, and was counted there.
    with store.env.write() as txn:
        extents.forget_unsound(txn, new)
        extents.put_frames(txn, frames)
