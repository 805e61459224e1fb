"""Uploads: one blob into one repository.

Small blobs go in one PUT. Others are streamed by one PATCH, which every registry takes (it is what docker
sends), and closed by a PUT; if the connection breaks, the server is asked how much it has, and the rest
follows in another PATCH. Follows distribution-spec v1.1.0, "Pushing blobs".

The content is hashed on its way out: what does not match its descriptor is never committed, and the upload is
cancelled. Memory stays within a few chunks, whatever the size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import httpx

from pagepool.digest import Digest, new_hasher
from pagepool.errors import (
    DigestMismatchError,
    PagepoolError,
    RangeInvalidError,
    ResponseError,
    UnreachableError,
    UnsupportedError,
    UploadUnknownError,
)
from pagepool.oci.descriptor import Descriptor
from pagepool.oci.verify import CHUNK_SIZE, Readable, read_verified
from pagepool.transport.answers import Subject
from pagepool.transport.http import Call, Session
from pagepool.transport.retry import RETRY_STATUSES

MONOLITHIC_SIZE = 4 << 20
"""Blobs up to this size are sent in one PUT, from memory."""

Progress = Callable[[int], None]
"""Told how many more bytes have gone through; a negative number takes back what must go again."""

_TYPE = {"Content-Type": "application/octet-stream"}


class BlobUpload:
    """An upload of one blob, from the location that the registry gave for it to the commit. Not thread-safe.

    Args:
        session: the registry.
        scope: what a token must allow.
        blob: what is uploaded.
        open_content: opens the content at its beginning; may be called several times.
        progress: told how far the upload is.
    """

    def __init__(
        self,
        session: Session,
        scope: str,
        blob: Descriptor,
        open_content: Callable[[], Readable],
        progress: Progress,
    ) -> None:
        self._session = session
        self._scope = scope
        self._blob = blob
        self._open = open_content
        self._progress = progress
        self._about = Subject(UploadUnknownError, str(blob.digest))
        self._reported = 0

    def run(self, location: httpx.URL) -> None:
        """Upload and commit.

        Args:
            location: where the registry wants it.

        Raises:
            DigestMismatchError: the content is not what its descriptor says; nothing was committed.
            UploadUnknownError: the registry forgot the upload. Begin another.
            PagepoolError: anything else the registry or the network does.
        """
        try:
            if self._blob.size <= MONOLITHIC_SIZE:
                self._put(location, read_verified(self._open(), self._blob))
                self._report(self._blob.size)
            else:
                location = self._patch_all(location)
                self._put(location, b"")
        except BaseException as error:
            self._report(0)
            gone = (UnreachableError, UploadUnknownError)
            if isinstance(error, Exception) and not isinstance(error, gone):
                self._cancel(location)
            raise

    def _put(self, location: httpx.URL, content: bytes) -> None:
        self._session.request(
            Call(
                "PUT",
                location,
                self._about,
                expect=(201, 204),
                params=(("digest", str(self._blob.digest)),),
                headers={**_TYPE, "Content-Length": str(len(content))},
                body=lambda: iter((content,)),
                scope=self._scope,
            )
        )

    def _patch_all(self, location: httpx.URL) -> httpx.URL:
        """Send everything, resuming after failures; return where to commit it."""
        failures, before = 0, 0
        while True:
            try:
                return self._patch(location, before)
            except (UnreachableError, ResponseError, RangeInvalidError) as error:
                if isinstance(error, ResponseError) and error.status not in RETRY_STATUSES:
                    raise
                failures += 1
                if failures >= self._session.retry.attempts:
                    raise
                self._session.retry.sleep(self._session.retry.delay_s(failures))
                location, have = self._ask(location)
                if have > before:
                    failures = 0
                before = have
                self._report(have)
                if have == self._blob.size:
                    return location  # all of it has come, and only the answer was lost

    def _patch(self, location: httpx.URL, start: int) -> httpx.URL:
        headers = {**_TYPE, "Content-Length": str(self._blob.size - start)}
        if start:
            # The first one goes without: docker sends none either, and some registries take a range for a
            # chunk, which they limit in size.
            headers["Content-Range"] = f"{start}-{self._blob.size - 1}"
        response = self._session.request(
            Call(
                "PATCH",
                location,
                self._about,
                expect=(202, 204),
                headers=headers,
                body=lambda: self._content(start),
                scope=self._scope,
                repeatable=False,
            )
        )
        return _location(self._session, response) or location

    def _ask(self, location: httpx.URL) -> tuple[httpx.URL, int]:
        """Where an interrupted upload goes on, and how many bytes the registry has."""
        call = Call("GET", location, self._about, expect=(204, 202, 200), scope=self._scope)
        try:
            response = self._session.request(call)
        except (ResponseError, UnsupportedError) as error:  # a registry that cannot say
            raise UploadUnknownError(self._blob.digest) from error
        match = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,18})", response.headers.get("Range", ""))
        # "0-0" should be one byte, and is none in docker's registry. One byte is never all that a chunk
        # leaves.
        have = int(match[1]) + 1 if match and match[1] != "0" else 0
        if have > self._blob.size:
            raise UploadUnknownError(self._blob.digest)
        return _location(self._session, response) or location, have

    def _content(self, start: int) -> Iterator[bytes]:
        """The content from `start`, hashed from its beginning, and checked before its last chunk goes out."""
        hasher, position = new_hasher(self._blob.digest.algorithm), 0
        with closing(self._open()) as content:
            chunk = content.read(CHUNK_SIZE)
            while chunk:
                following = content.read(CHUNK_SIZE)
                hasher.update(chunk)
                position += len(chunk)
                if not following or position > self._blob.size:
                    self._check(Digest(self._blob.digest.algorithm, hasher.digest()), position)
                if wanted := chunk[max(0, start - (position - len(chunk))) :]:
                    yield wanted
                    self._report(position)
                chunk = following
            if not position:
                self._check(Digest(self._blob.digest.algorithm, hasher.digest()), 0)

    def _check(self, got: Digest, size: int) -> None:
        if (got, size) != (self._blob.digest, self._blob.size):
            raise DigestMismatchError(self._blob.digest, got, size)

    def _report(self, position: int) -> None:
        if position != self._reported:
            self._progress(position - self._reported)
            self._reported = position

    def _cancel(self, location: httpx.URL) -> None:
        with suppress(PagepoolError):
            self._session.request(
                Call(
                    "DELETE",
                    location,
                    self._about,
                    expect=(200, 202, 204, 404, 405),
                    scope=self._scope,
                    repeatable=False,
                )
            )


def start_upload(
    session: Session, repository: str, scope: str, digest: Digest, mount_from: str | None
) -> httpx.URL | None:
    """Open an upload, or mount the blob from another repository.

    Returns:
        Where to upload to; None if the registry mounted the blob, so that nothing is to be uploaded.
    """
    params: list[tuple[str, str]] = []
    if mount_from:
        params += [("mount", str(digest)), ("from", mount_from)]
    if digest.algorithm != "sha256":
        params.append(("digest-algorithm", digest.algorithm))
    response = session.request(
        Call(
            "POST",
            f"/v2/{repository}/blobs/uploads/",
            Subject(UploadUnknownError, repository),
            expect=(202, 201),
            params=tuple(params),
            headers={"Content-Length": "0"},
            scope=scope,
        )
    )
    if response.status_code == 201:
        return None
    location = _location(session, response)
    if location is None:
        raise UnreachableError(session.where, "it opened an upload without saying where")
    return location


def _location(session: Session, response: httpx.Response) -> httpx.URL | None:
    text = response.headers.get("Location")
    return session.resolve(response, text) if text else None
