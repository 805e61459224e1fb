"""A registry as a source or sink of images, for `pagepool.layout.run_copy`."""

from __future__ import annotations

from collections.abc import Callable

from pagepool.digest import Digest
from pagepool.errors import DigestMismatchError
from pagepool.layout.interface import Progress
from pagepool.oci import Descriptor, Index, Manifest, Readable, Reference
from pagepool.transport.registry import RegistryClient


class RegistrySource:
    """One image or index in a registry. Thread-safe. Closing it leaves the client open."""

    def __init__(self, client: RegistryClient, reference: Reference) -> None:
        self._client = client
        self._repository = reference.repository
        self._pulled = client.get_manifest(reference.repository, reference.target)

    def root(self) -> Descriptor:
        """What the reference names."""
        return self._pulled.descriptor

    def read_manifest(self, descriptor: Descriptor) -> Manifest | Index:
        """Fetch a manifest or index by digest."""
        if descriptor.digest == self._pulled.descriptor.digest:
            return self._pulled.manifest
        pulled = self._client.get_manifest(self._repository, str(descriptor.digest))
        if pulled.descriptor.size != descriptor.size:
            raise DigestMismatchError(descriptor.digest, pulled.descriptor.digest, pulled.descriptor.size)
        return pulled.manifest

    def has_blob(self, blob: Descriptor) -> bool:
        """Ask whether a blob is there."""
        return self._client.has_blob(self._repository, blob)

    def open_blob(self, blob: Descriptor) -> Readable:
        """Open a blob, unchecked; it resumes by itself."""
        return self._client.open_raw_blob(self._repository, blob)

    def close(self) -> None:
        """Nothing is held."""


class RegistrySink:
    """A name in a registry. Thread-safe. Closing it leaves the client open.

    Args:
        client: the registry.
        reference: what the image is to be called: a tag, or the digest that its root must have.
        mount_from: another repository there that may have blobs.
    """

    def __init__(self, client: RegistryClient, reference: Reference, mount_from: str | None = None) -> None:
        self._client = client
        self._reference = reference
        self._mount_from = mount_from

    def begin(self, root: Manifest | Index) -> None:
        """Refuse content that has another digest than it is to be called by, before anything is sent."""
        expected = self._reference.digest
        if expected and (got := Digest.of(root.raw, expected.algorithm)) != expected:
            raise DigestMismatchError(expected, got, len(root.raw))

    def put_blob(self, blob: Descriptor, open_content: Callable[[], Readable], progress: Progress) -> bool:
        """Upload a blob, unless it is there or can be mounted."""
        return self._client.push_blob(
            self._reference.repository, blob, open_content, mount_from=self._mount_from, progress=progress
        )

    def put_manifest(self, descriptor: Descriptor, manifest: Manifest | Index) -> None:
        """Push a manifest or index by digest."""
        self._client.put_manifest(self._reference.repository, str(descriptor.digest), manifest)

    def commit(self, _: Descriptor, root: Manifest | Index, /) -> None:
        """Push the root by its name."""
        self._client.put_manifest(self._reference.repository, self._reference.target, root)
        if self._reference.digest and self._reference.tag:
            self._client.put_manifest(self._reference.repository, self._reference.tag, root)

    def close(self) -> None:
        """Nothing is held."""
