"""A client for any OCI registry.

Thread-safe: threads share one `RegistryClient`. Everything blocks. Errors are pagepool's: see `answers` and
`http`. Follows distribution-spec v1.1.0; works with registries that know version 1.0 or Docker's API only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx

from pagepool.digest import Digest
from pagepool.errors import (
    BlobUnknownError,
    DigestInvalidError,
    DigestMismatchError,
    DigestUnsupportedError,
    LimitError,
    ManifestInvalidError,
    ManifestUnknownError,
    NameUnknownError,
    NotFoundError,
    PagepoolError,
    ResponseError,
    UnsupportedError,
    UploadUnknownError,
)
from pagepool.oci import (
    Descriptor,
    Index,
    Manifest,
    Readable,
    VerifyingReader,
    mediatypes,
    parse_manifest,
    read_verified,
)
from pagepool.oci.fields import Object, load_object
from pagepool.transport import paging, referrers
from pagepool.transport.answers import Subject
from pagepool.transport.auth import CATALOG_SCOPE, repository_scope
from pagepool.transport.download import ResumingReader
from pagepool.transport.http import Call, Session
from pagepool.transport.upload import BlobUpload, Progress, start_upload

_ACCEPT = ", ".join(mediatypes.ACCEPT_MANIFESTS)
_MANIFEST_LIMIT = 4 * mediatypes.MAX_MANIFEST_SIZE
_NEW_UPLOADS = 3
_DIGEST_HEADER = "Docker-Content-Digest"


@dataclass(frozen=True, slots=True)
class Pulled:
    """A manifest as a registry gave it.

    Args:
        manifest: parsed; its bytes were checked against the digest asked for, or the one the registry said.
        descriptor: media type, digest and size; the digest is the one asked for, or else SHA-256.
    """

    manifest: Manifest | Index
    descriptor: Descriptor


class RegistryClient:
    """The operations of a registry. The caller closes the session.

    Args:
        session: the registry.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    # -- the registry ----------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Check that this is a registry and lets us in.

        Raises:
            PagepoolError: it cannot be reached, refuses, or is no registry.
        """
        try:
            self.session.request(Call("GET", "/v2/", Subject(NameUnknownError, self.session.where)))
        except NotFoundError:
            raise ResponseError(404, "", f"{self.session.where} has no registry API") from None

    def catalog(self) -> Iterator[str]:
        """All repositories, as far as the registry lists them, in its order.

        Raises:
            UnsupportedError: it has no such list, as what is no registry has none.
        """
        call = Call("GET", "/v2/_catalog", Subject(NameUnknownError, "repositories"), scope=CATALOG_SCOPE)
        try:
            for page in paging.pages(self.session, call):
                yield from self._strings(page, "repositories")
        except NotFoundError:
            raise UnsupportedError(f"{self.session.where} is no registry, or lists no repositories") from None

    def tags(self, repository: str, on_damage: Callable[[Mapping[str, Any]], object] = lambda _: None) -> Iterator[str]:
        """All tags of a repository, in the registry's order.

        Args:
            on_damage: told of each tag that is not listed, since its record is damaged: its `name`, and the `reason`.

        Raises:
            NameUnknownError: no such repository.
        """
        about = Subject(NameUnknownError, repository)
        call = Call("GET", f"/v2/{repository}/tags/list", about, scope=repository_scope(repository))
        for page in paging.pages(self.session, call):
            yield from self._strings(page, "tags")
            for entry in self._damaged(page):
                on_damage(entry)

    # -- manifests -------------------------------------------------------------------------------------------

    def head_manifest(self, repository: str, reference: str) -> Descriptor | None:
        """Media type, digest and size of a manifest, without fetching it; None if there is none.

        A registry that does not say all three is asked for the manifest itself.
        """
        try:
            response = self.session.request(self._manifest_call("HEAD", repository, reference))
        except NotFoundError:
            return None
        digest = _said_digest(response)
        size = response.headers.get("Content-Length", "")
        media_type = mediatypes.strip_parameters(response.headers.get("Content-Type", ""))
        if digest and size.isdigit() and mediatypes.is_media_type(media_type):
            return Descriptor(media_type, digest, int(size))
        return self.get_manifest(repository, reference).descriptor

    def get_manifest(self, repository: str, reference: str) -> Pulled:
        """Fetch a manifest or index.

        Args:
            repository: repository name.
            reference: tag or digest.

        Raises:
            ManifestUnknownError: there is none.
            DigestMismatchError: it is not what was asked for, or not what the registry says it is.
            ManifestInvalidError: it is nothing this client understands.
        """
        response = self.session.request(self._manifest_call("GET", repository, reference))
        raw = response.content
        asked = _digest_or_none(reference)
        for expected in (asked, _said_digest(response)):
            if expected and (got := Digest.of(raw, expected.algorithm)) != expected:
                raise DigestMismatchError(expected, got, len(raw))
        said = mediatypes.strip_parameters(response.headers.get("Content-Type", ""))
        # Plain file servers say application/json or less; then the document itself has to say.
        manifest = parse_manifest(raw, said if said in mediatypes.ACCEPT_MANIFESTS else None)
        descriptor = manifest.descriptor
        return Pulled(manifest, replace(descriptor, digest=asked) if asked else descriptor)

    def get_config(self, repository: str, manifest: str) -> bytes:
        """Fetch the configuration of an image, as it is stored.

        Args:
            repository: repository name.
            manifest: digest of its manifest, one platform's.

        Raises:
            ManifestUnknownError, BlobUnknownError: it is not there.
            ManifestInvalidError: that is an index, or nothing this client understands.
            LimitError: it is larger than any configuration.
            DigestMismatchError: it is not what the manifest says.
        """
        found = self.get_manifest(repository, manifest).manifest
        if not isinstance(found, Manifest):
            raise ManifestInvalidError(manifest, "is an index")
        if found.config.size > mediatypes.MAX_CONFIG_SIZE:
            raise LimitError("configuration", found.config.size, mediatypes.MAX_CONFIG_SIZE)
        return read_verified(self.open_raw_blob(repository, found.config), found.config)

    def put_manifest(self, repository: str, reference: str, manifest: Manifest | Index) -> Digest:
        """Push a manifest; all it refers to must be there already.

        On a registry without the referrers API, the list that stands in for it is updated too.

        Args:
            repository: repository name.
            reference: tag, or the digest of the manifest.
            manifest: what to push; its bytes are sent as they are.

        Returns:
            The manifest's digest.
        """
        asked = _digest_or_none(reference)
        digest = Digest.of(manifest.raw, asked.algorithm if asked else "sha256")
        if asked and asked != digest:
            raise DigestMismatchError(asked, digest, len(manifest.raw))
        response = self.session.request(
            Call(
                "PUT",
                f"/v2/{repository}/manifests/{reference}",
                Subject(NameUnknownError, _named(repository, reference), repository),
                expect=(201, 202, 200),
                headers={"Content-Type": manifest.media_type, "Content-Length": str(len(manifest.raw))},
                body=lambda: iter((manifest.raw,)),
                scope=repository_scope(repository, "pull,push"),
            )
        )
        said = _said_digest(response)
        if said and said.algorithm == digest.algorithm and said != digest:
            raise DigestMismatchError(digest, said, len(manifest.raw))
        if manifest.subject and "OCI-Subject" not in response.headers:
            self._note_referrer(repository, manifest.subject.digest, manifest)
        return digest

    def delete_manifest(self, repository: str, reference: str) -> None:
        """Delete a manifest with all its tags, by digest; or, where the registry can, one tag.

        Raises:
            ManifestUnknownError: there is none.
            UnsupportedError: this registry does not delete, or not by tag.
        """
        self._delete(
            repository, "manifests", reference, Subject(ManifestUnknownError, _named(repository, reference), repository)
        )

    def referrers(self, repository: str, subject: Digest, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """The manifests whose subject is `subject`, those of one artifact type only if one is given."""
        call = Call(
            "GET",
            f"/v2/{repository}/referrers/{subject}",
            Subject(ManifestUnknownError, str(subject), repository),
            params=(("artifactType", artifact_type),) if artifact_type else (),
            headers={"Accept": mediatypes.OCI_INDEX},
            scope=repository_scope(repository),
        )
        found: list[Descriptor] = []
        try:
            for page in paging.pages(self.session, call):
                index = parse_manifest(page.content, mediatypes.OCI_INDEX)
                found += index.manifests if isinstance(index, Index) else ()
        except NotFoundError:
            current = self._tagged_referrers(repository, subject)
            found = list(current.manifests) if isinstance(current, Index) else []
        return referrers.filter_referrers(tuple(found), artifact_type)

    # -- blobs -----------------------------------------------------------------------------------------------

    def has_blob(self, repository: str, blob: Descriptor) -> bool:
        """Tell whether a repository has a blob, of the right size as far as the registry says."""
        about = Subject(BlobUnknownError, str(blob.digest), repository)
        call = Call("HEAD", f"/v2/{repository}/blobs/{blob.digest}", about, scope=repository_scope(repository))
        try:
            response = self.session.request(call)
        except NotFoundError:
            return False
        size = response.headers.get("Content-Length", "")
        return not size.isdigit() or int(size) == blob.size

    def open_blob(self, repository: str, blob: Descriptor) -> VerifyingReader:
        """Open a blob; the reader resumes by itself, checks at its end, and the caller closes it.

        Raises:
            BlobUnknownError: the repository does not have it.
        """
        return VerifyingReader(self.open_raw_blob(repository, blob), blob)

    def open_raw_blob(self, repository: str, blob: Descriptor) -> Readable:
        """As `open_blob`, unchecked, for those who check themselves."""
        about = Subject(BlobUnknownError, str(blob.digest), repository)
        call = Call("GET", f"/v2/{repository}/blobs/{blob.digest}", about, scope=repository_scope(repository))
        return ResumingReader(self.session, call, blob.size)

    def push_blob(
        self,
        repository: str,
        blob: Descriptor,
        open_content: Callable[[], Readable],
        *,
        mount_from: str | None = None,
        progress: Progress = lambda _: None,
    ) -> bool:
        """Upload a blob, unless the registry has it or can mount it from a repository of its own.

        Args:
            blob: what it is; the content is checked against it on its way out.
            open_content: opens the content at its beginning; called again if an upload must start anew.
            mount_from: a repository of the same registry that may have it.
            progress: told of each step forward, in bytes, and of steps back as negative numbers.

        Returns:
            Whether it was uploaded.

        Raises:
            DigestMismatchError: the content is not what `blob` says.
        """
        scope = repository_scope(repository, "pull,push")
        if mount_from:
            scope += f" {repository_scope(mount_from)}"
        for left in reversed(range(_NEW_UPLOADS)):
            if self.has_blob(repository, blob):
                return False
            location = start_upload(self.session, repository, scope, blob.digest, mount_from)
            if location is None:
                return False
            try:
                BlobUpload(self.session, scope, blob, open_content, progress).run(location)
                break
            except UploadUnknownError:
                # Restarted, or committed what we sent and lost the answer. `has_blob` tells.
                if not left:
                    raise
        return True

    def delete_blob(self, repository: str, digest: Digest) -> None:
        """Unlink a blob from a repository.

        Raises:
            BlobUnknownError: the repository does not have it.
            UnsupportedError: this registry does not delete.
        """
        self._delete(repository, "blobs", str(digest), Subject(BlobUnknownError, str(digest), repository))

    # -- parts -----------------------------------------------------------------------------------------------

    def _manifest_call(self, method: str, repository: str, reference: str) -> Call:
        return Call(
            method,
            f"/v2/{repository}/manifests/{reference}",
            Subject(ManifestUnknownError, _named(repository, reference), repository),
            headers={"Accept": _ACCEPT},
            scope=repository_scope(repository),
            limit=_MANIFEST_LIMIT,
        )

    def _delete(self, repository: str, kind: str, name: str, about: Subject) -> None:
        scope = repository_scope(repository, "pull,push,delete")
        call = Call("DELETE", f"/v2/{repository}/{kind}/{name}", about, expect=(202, 200, 204), scope=scope)
        self.session.request(replace(call, repeatable=False))

    def _note_referrer(self, repository: str, subject: Digest, manifest: Manifest | Index) -> None:
        current = self._tagged_referrers(repository, subject)
        planned = referrers.plan_referrers(current, referrers.describe_referrer(manifest))
        if planned:
            self.put_manifest(repository, referrers.referrers_tag(subject), planned)

    def _tagged_referrers(self, repository: str, subject: Digest) -> Manifest | Index | None:
        try:
            return self.get_manifest(repository, referrers.referrers_tag(subject)).manifest
        except NotFoundError:
            return None

    def _strings(self, page: httpx.Response, name: str) -> tuple[str, ...]:
        return _list_of(page).strings(name)

    def _damaged(self, page: httpx.Response) -> list[Mapping[str, Any]]:
        """What pagepool's service could not list. Others have no such field, or one of their own."""
        found = _list_of(page).fields.get("damaged")
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _list_of(page: httpx.Response) -> Object:
    def complain(path: str, reason: str) -> PagepoolError:
        return ResponseError(page.status_code, "", f"its list cannot be used: {path} {reason}")

    return load_object(page.content, "answer", complain)


def _named(repository: str, reference: str) -> str:
    return f"{repository}{'@' if ':' in reference else ':'}{reference}"


def _said_digest(response: httpx.Response) -> Digest | None:
    return _digest_or_none(response.headers.get(_DIGEST_HEADER, ""))


def _digest_or_none(text: str) -> Digest | None:
    with suppress(DigestInvalidError, DigestUnsupportedError):
        return Digest.parse(text)
    return None
