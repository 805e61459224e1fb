"""Where a repair may get content again: other registries, image layouts and archives, and backups of the store.

A source is asked by digest, and never believed: whoever takes something of it compares that with its digest.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from pagepool.digest import Digest
from pagepool.errors import (
    BlobUnknownError,
    CorruptError,
    DigestMismatchError,
    InvalidError,
    NotFoundError,
    ResponseError,
)
from pagepool.layout import open_source
from pagepool.layout.files import DirectoryFiles
from pagepool.layout.source import blob_name
from pagepool.oci import Descriptor, mediatypes, parse_manifest
from pagepool.transport import RegistryClient, Session
from pagepool.transport.answers import Subject
from pagepool.transport.http import Call
from pagepool_service.backup.reading import SnapshotBlobs
from pagepool_service.store.environment import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pagepool.oci import Readable
    from pagepool_service.backup.repository import Repository, Snapshot

log = logging.getLogger("pagepool.repair")

_PIECE = 1 << 20
# Answers about one thing. Others are about the place: a registry that cannot be reached may have what is asked for.
_REFUSED = (CorruptError, DigestMismatchError, InvalidError, ResponseError)


class Source(Protocol):
    """Somewhere that may have content. What it gives is unchecked.

    That something is not there, or is wrong there, is None. An error is raised if the place cannot be asked at all.
    """

    @property
    def where(self) -> str:
        """What it is, for people."""
        ...

    def blob(self, repositories: Sequence[str], digest: Digest, size: int | None) -> Iterator[bytes] | None:
        """The bytes of a blob, or None if it is not there.

        Args:
            repositories: those that have it in the store that is repaired.
            size: bytes of it, if that is known.
        """
        ...

    def manifest(self, repositories: Sequence[str], digest: Digest) -> tuple[str, bytes] | None:
        """Media type and bytes of a manifest, or None."""
        ...

    def extent(self, digest: bytes) -> bytes | None:
        """The bytes of an extent, or None."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


class RegistrySource:
    """A registry.

    Args:
        repository: the one there that has everything; "" if repositories are called there as they are here.
    """

    def __init__(self, session: Session, repository: str = "") -> None:
        self._client = RegistryClient(session)
        self._repository = repository

    def ping(self) -> None:
        """Check that it is there, and lets us in.

        Raises:
            PagepoolError: it is not, or does not.
        """
        self._client.ping()

    @property
    def where(self) -> str:
        """The address."""
        return f"{self._client.session.where}/{self._repository}".rstrip("/")

    def blob(self, repositories: Sequence[str], digest: Digest, size: int | None) -> Iterator[bytes] | None:
        """See `Source`."""
        for repository in self._names(repositories):
            try:
                known = self._size(repository, digest) if size is None else size
                entry = Descriptor(mediatypes.OCI_LAYER, digest, known)
                if known and self._client.has_blob(repository, entry):
                    return _pieces(self._client.open_raw_blob(repository, entry))
            except NotFoundError:
                continue
            except _REFUSED as error:
                log.warning("blob %s from %s: %s", digest, self.where, error)
        return None

    def manifest(self, repositories: Sequence[str], digest: Digest) -> tuple[str, bytes] | None:
        """See `Source`."""
        for repository in self._names(repositories):
            try:
                pulled = self._client.get_manifest(repository, str(digest))
            except NotFoundError:
                continue
            except _REFUSED as error:
                log.warning("manifest %s from %s: %s", digest, self.where, error)
                continue
            return pulled.manifest.media_type, pulled.manifest.raw
        return None

    def extent(self, digest: bytes) -> bytes | None:  # noqa: ARG002 - registries know none
        """See `Source`."""
        return None

    def close(self) -> None:
        """See `Source`."""
        self._client.session.close()

    def _names(self, repositories: Sequence[str]) -> Sequence[str]:
        return (self._repository,) if self._repository else repositories

    def _size(self, repository: str, digest: Digest) -> int:
        about = Subject(BlobUnknownError, str(digest), repository)
        path = f"/v2/{repository}/blobs/{digest}"
        response = self._client.session.request(Call("HEAD", path, about, scope=f"repository:{repository}:pull"))
        text = response.headers.get("Content-Length", "")
        return int(text) if text.isdigit() else 0


class LayoutSource:
    """An OCI layout, or an archive of one image."""

    def __init__(self, path: Path, name: str | None) -> None:
        self._path = path
        self._files = DirectoryFiles(path) if path.is_dir() and (path / "oci-layout").exists() else None
        self._source = None if self._files else open_source(path, name)

    @property
    def where(self) -> str:
        """The path."""
        return str(self._path)

    def blob(self, repositories: Sequence[str], digest: Digest, size: int | None) -> Iterator[bytes] | None:  # noqa: ARG002 - it has no repositories
        """See `Source`."""
        if self._files is not None:
            name = blob_name(digest)
            return None if self._files.size(name) is None else _pieces(self._files.open(name))
        entry = Descriptor(mediatypes.OCI_LAYER, digest, size or 0)
        assert self._source is not None
        return _pieces(self._source.open_blob(entry)) if self._source.has_blob(entry) else None

    def manifest(self, repositories: Sequence[str], digest: Digest) -> tuple[str, bytes] | None:
        """See `Source`."""
        pieces = self.blob(repositories, digest, None)
        raw = b"" if pieces is None else b"".join(pieces)
        if not raw or Digest.of(raw, digest.algorithm) != digest:
            return None
        return parse_manifest(raw).media_type, raw

    def extent(self, digest: bytes) -> bytes | None:  # noqa: ARG002 - layouts know none
        """See `Source`."""
        return None

    def close(self) -> None:
        """See `Source`."""
        if self._source is not None:
            self._source.close()


class BackupSource:
    """The newest snapshot of a directory of backups: all that it has, read out of it where it lies."""

    def __init__(self, repository: Repository, snapshot: Snapshot) -> None:
        self._path = repository.path
        self._content = SnapshotBlobs(repository, snapshot)

    @property
    def where(self) -> str:
        """The path."""
        return str(self._path)

    def blob(self, repositories: Sequence[str], digest: Digest, size: int | None) -> Iterator[bytes] | None:  # noqa: ARG002 - it has all
        """See `Source`."""
        try:
            return self._content.blobs.read(digest)
        except (NotFoundError, CorruptError):
            return None

    def manifest(self, repositories: Sequence[str], digest: Digest) -> tuple[str, bytes] | None:  # noqa: ARG002 - it has all
        """See `Source`."""
        payload = self._content.records.get(Table.MANIFESTS, digest.key)
        if payload is None:
            return None
        end = 9 + payload[8]  # docs/format/catalogue.md, manifest
        return bytes(payload[9:end]).decode("ascii", "replace"), bytes(payload[end:])

    def extent(self, digest: bytes) -> bytes | None:
        """See `Source`."""
        return self._content.extent(digest)

    def close(self) -> None:
        """See `Source`."""


def _pieces(source: Readable) -> Iterator[bytes]:
    try:
        while piece := source.read(_PIECE):
            yield piece
    finally:
        source.close()
