"""Manifests and tags of a repository (distribution-spec v1.1, end-3, end-7 and end-9).

A manifest is kept and handed out byte for byte. `Accept` chooses nothing: a client that asks for a manifest gets the
one there is, under the media type it was pushed with.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request, Response

from pagepool.digest import Digest
from pagepool.errors import DigestMismatchError, InvalidError, LimitError, ManifestUnknownError, NameUnknownError
from pagepool.oci import Manifest, parse_manifest, validate_tag
from pagepool.oci.mediatypes import DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, OCI_INDEX, OCI_MANIFEST
from pagepool_service.routes.addresses import location
from pagepool_service.routes.blobs import is_known
from pagepool_service.routes.context import Context, Service
from pagepool_service.routes.described import (
    DIGEST,
    LENGTH,
    LOCATION,
    failures,
    head_failures,
    header,
    header_parameter,
    success,
)
from pagepool_service.routes.parameters import TAG_PATTERN, Reference, Repository, Sought, content_length
from pagepool_service.routes.streaming import body_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.oci import Index
    from pagepool_service.routes.bodies import Coming
    from pagepool_service.store.catalogue import StoredManifest

router = APIRouter()

MOST_TAGS = 100
_PATH = "/v2/{name:repository}/manifests/{reference}"
_HEADERS = {"Docker-Content-Digest": DIGEST, "Content-Length": LENGTH, "ETag": header("The digest, quoted.")}
_CONTENT = {
    media_type: {"schema": {"type": "object"}}
    for media_type in (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_MANIFEST_LIST)
}
_CONDITIONS = {"parameters": [header_parameter("If-None-Match", "Answer 304 if the digest is among these.")]}


@router.get(
    _PATH,
    response_class=Response,
    openapi_extra=_CONDITIONS,
    responses={
        200: success("The manifest, byte for byte.", _HEADERS, _CONTENT),
        304: success("The client has it."),
        **failures(),
    },
)
async def get_manifest(request: Request, service: Service, name: Repository, reference: Sought) -> Response:
    """Read a manifest by tag or digest."""
    stored = await _find(service, name, reference)
    headers = _headers(service, stored, reference)
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(stored.raw, headers=headers)


@router.head(
    _PATH,
    response_class=Response,
    responses={200: success("It is there.", _HEADERS), 304: success("The client has it."), **head_failures()},
)
async def head_manifest(request: Request, service: Service, name: Repository, reference: Sought) -> Response:
    """Check for a manifest."""
    stored = await _find(service, name, reference)
    headers = _headers(service, stored, reference)
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(headers={**headers, "Content-Length": str(len(stored.raw))})


@router.put(
    _PATH,
    status_code=201,
    response_class=Response,
    openapi_extra={"requestBody": {"description": "The manifest.", "required": True, "content": _CONTENT}},
    responses={
        201: success(
            "Stored.",
            {
                "Location": LOCATION,
                "Docker-Content-Digest": DIGEST,
                "OCI-Subject": header("The subject, if the manifest has one: its referrers list it now."),
                "OCI-Tag": header("The tags that were set by `tag`."),
            },
        ),
        **failures(405, 413, 507),
    },
)
async def put_manifest(
    request: Request,
    service: Service,
    name: Repository,
    reference: Reference,
    tag: Annotated[
        list[str],
        Query(
            description=f"Tags to set beside, when pushing by digest; at most {MOST_TAGS}.",
            json_schema_extra={"items": {"type": "string", "pattern": TAG_PATTERN}},
        ),
    ] = [],  # noqa: B006  (FastAPI copies defaults)
) -> Response:
    """Push a manifest. Blobs and manifests it refers to must be in the repository; its subject need not."""
    tags = _tags(reference, tag)
    async with service.bodies.hold(_announced(request, service)) as coming:
        raw = await _read_body(request, service, coming)
        digest = Digest.of(raw, reference.algorithm if isinstance(reference, Digest) else "sha256")
        if isinstance(reference, Digest) and digest != reference:
            raise DigestMismatchError(reference, digest, len(raw))
        async with service.bodies.parsing(len(raw)):
            document = await service.threads.run(parse_manifest, raw, request.headers.get("content-type"))
        limit = service.quotas.limit(name)
        await service.writers.run(service.registry.put_manifest, name, digest, document, tags, limit)
    if isinstance(document, Manifest):
        await service.threads.run(service.wanted.add, name, digest)
    where = location(request, service, f"/v2/{name}/manifests/{digest}")  # which the tag may soon not name
    return Response(status_code=201, headers={"Location": where, **_put_headers(digest, document, tag)})


@router.delete(
    _PATH, status_code=202, response_class=Response, responses={202: success("Deleted."), **failures(405, 507)}
)
async def delete_manifest(service: Service, name: Repository, reference: Reference) -> Response:
    """Remove a tag; or, by digest, a manifest and every tag of the repository that points to it."""
    with _unknown_as_manifest(name, reference):
        if isinstance(reference, Digest):
            await service.writers.run(service.registry.delete_manifest, name, reference)
        else:
            await service.writers.run(service.registry.delete_tag, name, reference)
    return Response(status_code=202)


async def _find(service: Context, name: str, reference: Digest | str) -> StoredManifest:
    """A manifest that a client asked for. One that is still pulled by its digest is not collected for having no tag."""
    with _unknown_as_manifest(name, reference):
        stored, old = await service.threads.run(service.registry.ask_manifest, name, reference)
        if old:
            await service.writers.run(service.registry.renew_manifest, name, stored.digest)
    return stored


@contextmanager
def _unknown_as_manifest(name: str, reference: Digest | str) -> Iterator[None]:
    """Have the manifest be what is unknown where its repository is, as docker-registry does.

    skopeo and its library know by MANIFEST_UNKNOWN alone that an image is not there yet.
    """
    try:
        yield
    except NameUnknownError:
        raise ManifestUnknownError(f"{reference} (there is no repository {name})") from None


def _tags(reference: Digest | str, extra: list[str]) -> list[str]:
    if isinstance(reference, str):
        if extra:
            raise InvalidError(extra[0][:128], "`tag` is for pushes by digest")
        return [reference]
    if len(extra) > MOST_TAGS:
        raise LimitError("number of tags", len(extra), MOST_TAGS)
    return [validate_tag(tag) for tag in extra]


def _announced(request: Request, service: Context) -> int:
    """How large a manifest may become.

    Raises:
        LimitError: it is said to be too large.
    """
    limit = service.settings.max_manifest_bytes
    announced = content_length(request.headers)
    if announced is not None and announced > limit:
        raise LimitError("manifest", announced, limit)
    return limit if announced is None else announced


async def _read_body(request: Request, service: Context, coming: Coming) -> bytes:
    limit = service.settings.max_manifest_bytes
    parts: list[bytes] = []
    size = 0
    async for chunk in body_chunks(request, service.settings.body_timeout_s):
        coming.came(len(chunk))
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            raise LimitError("manifest", size, limit)
    coming.complete()
    return b"".join(parts)


def _headers(service: Context, stored: StoredManifest, reference: Digest | str) -> dict[str, str]:
    kept = service.forever if isinstance(reference, Digest) else "no-cache"
    return {
        "Content-Type": stored.media_type,
        "Docker-Content-Digest": str(stored.digest),
        "ETag": f'"{stored.digest}"',
        "Cache-Control": kept,
    }


def _put_headers(digest: Digest, document: Manifest | Index, tags: list[str]) -> dict[str, str]:
    headers = {"Docker-Content-Digest": str(digest)}
    if document.subject is not None:
        headers["OCI-Subject"] = str(document.subject.digest)
    if tags:
        headers["OCI-Tag"] = ", ".join(tags)
    return headers
