"""What a manifest or index refers to: whether its repository has it, and of the size that is said. Reads only.

In the transaction that stores the document: a part that is deleted at the same time is seen there, or not any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.errors import ManifestBlobUnknownError, ManifestInvalidError, SizeInvalidError
from pagepool.oci import Descriptor, Index
from pagepool.oci.mediatypes import is_foreign_layer
from pagepool_service.store.catalogue import StoredManifest, link_key
from pagepool_service.store.environment import CHECKSUM_SIZE, Table
from pagepool_service.store.schema import BlobRecord

if TYPE_CHECKING:
    from pagepool.oci import Manifest
    from pagepool_service.store.environment import Reader


def check_parts(txn: Reader, repository: str, document: Manifest | Index) -> None:
    """Everything a document needs must be in the repository, but a subject, and layers that may be kept elsewhere.

    Raises:
        ManifestBlobUnknownError: it is not.
        SizeInvalidError: the document says another size of a blob than that has.
        ManifestInvalidError: or of a manifest.
    """
    if isinstance(document, Index):
        for entry in document.manifests:
            key = link_key(repository, entry.digest)
            # An index may list things that are no manifests; those are blobs.
            if txn.has(Table.MANIFEST_LINKS, key):
                _check_entry(txn, entry)
            elif txn.has(Table.LINKS, key):
                _check_size(txn, entry)
            else:
                raise ManifestBlobUnknownError(str(entry.digest), f"{repository} has no such manifest")
        return
    for entry in document.blobs:
        if txn.has(Table.LINKS, link_key(repository, entry.digest)):
            _check_size(txn, entry)
        elif not may_lack(entry):
            raise ManifestBlobUnknownError(str(entry.digest), f"{repository} has no such blob")


def may_lack(entry: Descriptor) -> bool:
    """Whether a repository need not have what its manifest names so: that it names it gives it no right to it."""
    return is_foreign_layer(entry.media_type) and bool(entry.urls)


def _check_entry(txn: Reader, entry: Descriptor) -> None:
    """Nor do they pull a manifest of another size than an index says."""
    # Not read: an index may name thousands of manifests of megabytes, and nobody writes meanwhile.
    value = txn.get_unchecked(Table.MANIFESTS, entry.digest.key)
    size = entry.size if value is None else StoredManifest.size_of(value[:-CHECKSUM_SIZE])
    if size != entry.size:
        raise ManifestInvalidError(f"entry {entry.digest}", f"it says {entry.size} bytes of a manifest that has {size}")


def _check_size(txn: Reader, entry: Descriptor) -> None:
    """Clients refuse to pull a blob of another size than its manifest says: better refuse the push."""
    payload = txn.get(Table.BLOBS, entry.digest.key)
    size = entry.size if payload is None else BlobRecord.decode(payload, str(entry.digest)).size
    if size != entry.size:
        raise SizeInvalidError(entry.size, f"blob {entry.digest} has {size} bytes")
