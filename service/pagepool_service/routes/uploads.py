"""Pushing blobs: whole, in chunks, as a stream, or by mounting (distribution-spec v1.1, end-4 to end-6, 11, 13, 14).

A body goes to the session's file piece by piece: while a thread writes and hashes one, the next is collected, so a
request holds about 2 MiB whatever the blob's size. A request whose length was announced counts whole or not at all;
of a streamed one, what arrived is kept.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.requests import ClientDisconnect

from pagepool.digest import Digest, new_hasher
from pagepool.errors import (
    NameInvalidError,
    PagepoolError,
    RangeInvalidError,
    SizeInvalidError,
    StoreFullError,
    UploadBusyError,
)
from pagepool.oci import validate_repository
from pagepool_service.routes.access import Caller, authorize_source
from pagepool_service.routes.addresses import location
from pagepool_service.routes.context import Context, Service
from pagepool_service.routes.described import (
    DIGEST,
    LOCATION,
    RANGE,
    binary_body,
    failures,
    header,
    header_parameter,
    success,
)
from pagepool_service.routes.errors import render
from pagepool_service.routes.parameters import (
    DIGEST_PATTERN,
    UPLOAD_RANGE_PATTERN,
    Repository,
    content_length,
    upload_range,
)
from pagepool_service.routes.streaming import PIECE_SIZE, body_chunks
from pagepool_service.store.room import RepositoryFullError
from pagepool_service.uploadfiles import owner_mark

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool_service.auth import Access
    from pagepool_service.store.room import Room
    from pagepool_service.uploads import OpenUpload
    from pagepool_service.uploads import Session as SessionRecord

router = APIRouter()

# How long a request waits for another one to let go of the session: that of a client that just left.
_LOCK_WAIT_S = 2.0
# Chunks gathered at most for one write: a client may send single bytes.
_MOST_PARTS = 512
_SESSIONS = "/v2/{name:repository}/blobs/uploads"
_SESSION = "/v2/{name:repository}/blobs/uploads/{session}"
_SESSION_HEADERS = {"Location": LOCATION, "Range": RANGE, "Docker-Upload-UUID": header("The session.")}
_CREATED = success("The blob is stored.", {"Location": LOCATION, "Docker-Content-Digest": DIGEST})
_CHUNK_RANGE = header_parameter(
    "Content-Range", "Which bytes of the blob the body is, `first-last`, both inclusive.", pattern=UPLOAD_RANGE_PATTERN
)
_DIGEST_SCHEMA = {"pattern": DIGEST_PATTERN}

Session = Annotated[
    str, Path(description="The session, out of a location.", json_schema_extra={"pattern": "^[0-9a-f-]{36}$"})
]


@router.post(_SESSIONS, include_in_schema=False)
@router.post(
    _SESSIONS + "/",
    status_code=202,
    response_class=Response,
    openapi_extra=binary_body("The blob, with `digest`.", required=False),
    responses={
        201: _CREATED,
        202: success("A session; send the blob to its location.", _SESSION_HEADERS),
        **failures(405, 413, 429, 507),
    },
)
async def begin_upload(
    request: Request,
    service: Service,
    caller: Caller,
    name: Repository,
    digest: Annotated[
        str | None, Query(description="Digest of the blob in the body.", json_schema_extra=_DIGEST_SCHEMA)
    ] = None,
    mount: Annotated[
        str | None, Query(description="Digest of a blob to mount.", json_schema_extra=_DIGEST_SCHEMA)
    ] = None,
    source: Annotated[
        str | None, Query(alias="from", description="Repository to mount it from; any without it.")
    ] = None,
    algorithm: Annotated[
        str | None, Query(alias="digest-algorithm", description="Algorithm of the digest to come.")
    ] = None,
) -> Response:
    """Begin an upload, push a blob in one request (`digest`), or mount one from another repository (`mount`)."""
    if mount is not None and await _mount(request, service, caller, name, Digest.parse(mount), source):
        return _created(request, service, name, Digest.parse(mount))
    claimed = None if digest is None else Digest.parse(digest)
    if algorithm is not None:
        new_hasher(algorithm)
    wanted = claimed.algorithm if claimed else algorithm or "sha256"
    if claimed is None:
        await service.threads.run(service.quotas.room, name, 1)
    session = await service.threads.run(_begin, service, caller, name, wanted)
    if claimed is None:
        return _accepted(request, service, name, session.id, 0)
    upload = await service.threads.run(service.uploads.open, name, session.id)
    try:
        await _take_body(request, service, upload, claimed)
        await service.writers.run(upload.finish, claimed, _linker(service, name, claimed))
    except BaseException:
        upload.remove()
        raise
    finally:
        service.sessions.give_back(session.id)
        upload.close()
    return _created(request, service, name, claimed)


@router.get(
    _SESSION,
    status_code=204,
    response_class=Response,
    responses={204: success("How far the upload is.", _SESSION_HEADERS), **failures()},
)
async def get_upload(request: Request, service: Service, name: Repository, session: Session) -> Response:
    """Ask how many bytes of an upload have come in."""
    size = await service.threads.run(service.uploads.size, name, session)
    return _accepted(request, service, name, session, size, status=204)


@router.patch(
    _SESSION,
    status_code=202,
    response_class=Response,
    openapi_extra={**binary_body("Bytes of the blob.", required=True), "parameters": [_CHUNK_RANGE]},
    responses={202: success("Taken in.", _SESSION_HEADERS), **failures(405, 409, 413, 416, 507)},
)
async def write_upload(request: Request, service: Service, name: Repository, session: Session) -> Response:
    """Send bytes of a blob: a chunk with `Content-Range`, which must begin where the last ended, or a stream."""
    upload = await _open(service, name, session)
    try:
        await _take_body(request, service, upload)
    except RepositoryFullError:
        await _give_up(service, upload)
        raise
    except RangeInvalidError as error:
        return render(error, **_session_headers(request, service, name, session, upload.size))
    finally:
        upload.close()
    return _accepted(request, service, name, session, upload.size)


@router.put(
    _SESSION,
    status_code=201,
    response_class=Response,
    openapi_extra={**binary_body("The last bytes, if any.", required=False), "parameters": [_CHUNK_RANGE]},
    responses={201: _CREATED, **failures(405, 409, 413, 416, 507)},
)
async def finish_upload(
    request: Request,
    service: Service,
    name: Repository,
    session: Session,
    digest: Annotated[str, Query(description="Digest of the whole blob.", json_schema_extra=_DIGEST_SCHEMA)],
) -> Response:
    """End an upload, with its last bytes or none. The blob is durable when this is answered."""
    claimed = Digest.parse(digest)
    upload = await _open(service, name, session)
    before = upload.size
    try:
        await _take_body(request, service, upload, claimed)
        await service.writers.run(upload.finish, claimed, _linker(service, name, claimed))
        service.sessions.give_back(session)
    except RepositoryFullError:
        await _give_up(service, upload)
        raise
    except RangeInvalidError as error:
        return render(error, **_session_headers(request, service, name, session, before))
    except PagepoolError:
        # The same request may come again, with the same last bytes.
        await service.threads.run(upload.truncate, before)
        raise
    finally:
        upload.close()
    return _created(request, service, name, claimed)


@router.delete(
    _SESSION,
    status_code=204,
    response_class=Response,
    responses={204: success("Removed."), **failures(405, 409)},
)
async def cancel_upload(service: Service, name: Repository, session: Session) -> Response:
    """Give an upload up."""
    upload = await _open(service, name, session)
    try:
        await _give_up(service, upload)
    finally:
        upload.close()
    return Response(status_code=204)


async def _give_up(service: Context, upload: OpenUpload) -> None:
    """Remove an upload: one that would not fit the next time either would take room meanwhile."""
    await service.threads.run(upload.remove)
    service.sessions.give_back(upload.session.id)


async def _mount(
    request: Request, service: Context, caller: Access, name: str, digest: Digest, source: str | None
) -> bool:
    """Mount a blob from where the caller may pull it; from elsewhere it is as if it were not there."""
    if source is not None:
        try:
            authorize_source(request, service, caller, name, validate_repository(source))
        except NameInvalidError:  # no repository is called so: the client is to upload it
            return False
    limit = service.quotas.limit(name)
    return await service.writers.run(service.registry.mount_blob, name, digest, source, caller.sees, limit)


def _linker(service: Context, name: str, digest: Digest) -> Callable[..., None]:
    return service.registry.linker(name, digest, service.quotas.limit(name))


def _begin(service: Context, caller: Access, name: str, algorithm: str) -> SessionRecord:
    owner = "" if caller.unrestricted else str(caller.principal)
    service.sessions.take(owner)
    try:
        return service.uploads.begin(name, algorithm, owner)
    except BaseException:
        service.sessions.give_back(owner_mark(owner))
        raise


async def _open(service: Context, name: str, session: str) -> OpenUpload:
    """Take the right to write, waiting a moment for a request that is on its way out."""
    deadline = asyncio.get_running_loop().time() + _LOCK_WAIT_S
    while True:
        try:
            return await service.threads.run(service.uploads.open, name, session)
        except UploadBusyError:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(0.02)


async def _take_body(request: Request, service: Context, upload: OpenUpload, claimed: Digest | None = None) -> None:
    """Append the request's body to the session.

    Args:
        claimed: what the session is to be at its end. Where the repository has that, it takes no room.

    Raises:
        RangeInvalidError: the chunk does not begin where the session ends.
        SizeInvalidError: it is not as long as announced.
        ClientDisconnect: the client left. Of a body of announced length nothing is kept, of a stream what came.
    """
    announced = upload_range(request.headers)
    length = content_length(request.headers)
    before = upload.size
    if announced is not None and announced[0] != before:
        raise RangeInvalidError(f"{announced[0]}-{announced[1] - 1}", f"the upload has {before} bytes")
    expected = announced[1] - announced[0] if announced else length
    if expected:
        service.uploads.check_size(before + expected)
    try:
        room = await _make_room(service, upload, before + (expected or 0), claimed)
    except (StoreFullError, RepositoryFullError):
        if claimed is None or not await service.threads.run(upload.keep_nothing, claimed):
            raise
        room = None
    try:
        await _pump(request, service, upload, room)
        if expected is not None and upload.size - before != expected:
            raise SizeInvalidError(upload.size - before, f"{expected} bytes were announced")
    except ClientDisconnect:
        if expected is not None:
            await service.threads.run(upload.truncate, before)
        raise
    except asyncio.CancelledError:
        # The service ends, and its threads with it: not in one of them.
        upload.close(None if expected is None else before)
        raise
    except PagepoolError:
        await service.threads.run(upload.truncate, before)
        raise


async def _make_room(service: Context, upload: OpenUpload, size: int, claimed: Digest | None) -> Room | None:
    """See that an upload may have so many bytes; of one whose length nobody knows, that it may have any."""
    incoming = size - upload.size or (1 if claimed and not size else 0)
    if incoming:
        await service.threads.run(service.uploads.check_room, incoming)
    name = upload.session.repository
    if not service.quotas.limit(name).most:
        return None
    return await service.threads.run(service.quotas.room, name, size)


async def _pump(request: Request, service: Context, upload: OpenUpload, room: Room | None) -> None:
    parts: list[bytes] = []
    size = 0
    writing: asyncio.Future[None] | None = None
    try:
        async for chunk in body_chunks(request, service.settings.body_timeout_s):
            parts.append(chunk)
            size += len(chunk)
            if size < PIECE_SIZE and len(parts) < _MOST_PARTS:
                continue
            if writing is not None:
                await writing
            if room is not None:
                room.check(upload.size + size)
            writing = service.threads.start(upload.write, parts)
            parts, size = [], 0
    finally:
        # Also when the client has left: what arrived is written, and then kept or not.
        if writing is not None:
            await writing
        if parts:
            await service.threads.run(upload.write, parts)


def _session_headers(request: Request, service: Context, name: str, session: str, size: int) -> dict[str, str]:
    return {
        "Location": location(request, service, f"/v2/{name}/blobs/uploads/{session}"),
        "Range": f"0-{max(0, size - 1)}",
        "Docker-Upload-UUID": session,
    }


def _accepted(request: Request, service: Context, name: str, session: str, size: int, *, status: int = 202) -> Response:
    headers = _session_headers(request, service, name, session, size)
    if service.settings.chunk_min_bytes:
        headers["OCI-Chunk-Min-Length"] = str(service.settings.chunk_min_bytes)
    return Response(status_code=status, headers=headers)


def _created(request: Request, service: Context, name: str, digest: Digest) -> Response:
    where = location(request, service, f"/v2/{name}/blobs/{digest}")
    return Response(status_code=201, headers={"Location": where, "Docker-Content-Digest": str(digest)})
