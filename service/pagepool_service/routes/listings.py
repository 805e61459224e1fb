"""What there is: support, repositories, tags, referrers (distribution-spec v1.1, end-1, end-8 and end-12).

Long lists come in pages: `n` bounds a page, `last` says behind what it begins, and `Link` names the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from pagepool.digest import Digest
from pagepool.oci.mediatypes import OCI_INDEX
from pagepool_service.routes.access import Caller
from pagepool_service.routes.context import Service
from pagepool_service.routes.described import LINK, Responses, failures, header, json_object, success
from pagepool_service.routes.parameters import DIGEST_PATTERN, BlobDigest, Last, Limit, Repository, next_link

if TYPE_CHECKING:
    from pagepool_service.store.listings import Page

router = APIRouter()

_NAMES: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
_DAMAGED = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "reason": {"type": "string"}},
        "required": ["name", "reason"],
    },
    "description": "Names whose record cannot be read, not listed elsewhere; absent if there are none.",
}
_INDEX = json_object(
    schemaVersion={"type": "integer"}, mediaType={"type": "string"}, manifests={"type": "array", "items": {}}
)["application/json"]
_SUPPORT: Responses = {200: success("It is spoken here.", content=json_object())}
_REPOSITORIES: Responses = {
    200: success(
        "Repositories, in byte order.",
        {"Link": LINK},
        json_object(("repositories",), repositories=_NAMES, damaged=_DAMAGED),
    ),
    **failures(),
}
_TAGS: Responses = {
    200: success(
        "Tags, in byte order.",
        {"Link": LINK},
        json_object(("name", "tags"), name={"type": "string"}, tags=_NAMES, damaged=_DAMAGED),
    ),
    **failures(),
}
_REFERRERS: Responses = {
    200: success(
        "An index of them.", {"Link": LINK, "OCI-Filters-Applied": header("Filters in force.")}, {OCI_INDEX: _INDEX}
    ),
    **failures(),
}


@router.head("/v2/", include_in_schema=False)
@router.get("/v2", include_in_schema=False)
@router.get("/v2/", responses=_SUPPORT)
async def get_support() -> JSONResponse:
    """Tell that this is a registry that speaks the distribution specification."""
    return JSONResponse({})


@router.get("/v2/_catalog", responses=_REPOSITORIES)
async def list_repositories(service: Service, caller: Caller, n: Limit, last: Last) -> JSONResponse:
    """List the repositories that have a manifest, as far as the caller may know of them."""
    page = await service.threads.run(service.registry.listings.repositories, n, last, caller.lists_name)
    link = next_link("/v2/_catalog", n=n, last=page.last) if page.more and page.last else {}
    return JSONResponse({"repositories": page.names, **_damaged(page)}, headers=link)


@router.get("/v2/{name:repository}/tags/list", responses=_TAGS)
async def list_tags(service: Service, name: Repository, n: Limit, last: Last) -> JSONResponse:
    """List the tags of a repository."""
    page = await service.threads.run(service.registry.listings.tags, name, n, last)
    link = next_link(f"/v2/{name}/tags/list", n=n, last=page.last) if page.more and page.last else {}
    return JSONResponse({"name": name, "tags": page.names, **_damaged(page)}, headers=link)


def _damaged(page: Page) -> dict[str, Any]:
    """What a page could not list, if there is anything: no client but ours looks for it."""
    found = [{"name": name, "reason": str(error)} for name, error in page.damaged.items()]
    return {"damaged": found} if found else {}


@router.get("/v2/{name:repository}/referrers/{digest}", responses=_REFERRERS)
async def list_referrers(
    service: Service,
    name: Repository,
    digest: BlobDigest,
    n: Limit,
    artifact_type: Annotated[
        str | None, Query(alias="artifactType", description="Only referrers of this artifact type.")
    ] = None,
    last: Annotated[
        str | None,
        Query(description="Return what comes after this digest.", json_schema_extra={"pattern": DIGEST_PATTERN}),
    ] = None,
) -> JSONResponse:
    """List the manifests whose subject is a digest, whether that manifest is there or not."""
    page = await service.threads.run(
        lambda: service.registry.listings.referrers(
            name,
            digest,
            artifact_type=artifact_type,
            limit=max(1, n),
            last=None if last is None else Digest.parse(last),
        )
    )
    headers = {} if artifact_type is None else {"OCI-Filters-Applied": "artifactType"}
    if page.last is not None:
        query = {} if artifact_type is None else {"artifactType": artifact_type}
        headers |= next_link(f"/v2/{name}/referrers/{digest}", **query, n=n, last=str(page.last))
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page.descriptors}
    return JSONResponse(index, headers=headers, media_type=OCI_INDEX)
