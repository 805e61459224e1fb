"""Leases on trees: who has a tree mounted keeps it, though its tag and its manifest are deleted.

A lease ends by itself. Its holder renews it, with its id, well before that time; a lease that has ended meanwhile is
taken anew, under another id, as long as the repository has the tree.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from pagepool.errors import InvalidError, LeaseUnknownError
from pagepool_service.routes.bodies import json_body, read_object, text_field
from pagepool_service.routes.context import Service
from pagepool_service.routes.described import failures, json_object, success
from pagepool_service.routes.objects import TreeText, parse_tree
from pagepool_service.routes.parameters import Repository

if TYPE_CHECKING:
    from pagepool_service.routes.context import Context
    from pagepool_service.store.leases import Lease

router = APIRouter()

SHORTEST_S = 1
LONGEST_S = 7 * 86_400
_LONGEST_HOLDER = 255
_LARGEST_BODY = 16 << 10
_ID_PATTERN = r"^[0-9a-f]{32}$"
_BODY = json_body(
    "Who wants it, for how long, and which lease is renewed, if one is.",
    ("holder", "ttl_s"),
    holder={"type": "string", "minLength": 1, "maxLength": _LONGEST_HOLDER, "description": "For people."},
    ttl_s={"type": "integer", "minimum": SHORTEST_S, "maximum": LONGEST_S, "description": "Seconds from now on."},
    lease={"type": "string", "pattern": _ID_PATTERN, "description": "Id of the lease to renew."},
)
_LEASE = json_object(
    id={"type": "string", "pattern": _ID_PATTERN},
    ttl_s={"type": "integer", "minimum": SHORTEST_S, "description": "Seconds that it lasts."},
    expires_s={"type": "integer", "description": "When it ends, in seconds since 1970 by the service's clock."},
)


@router.post(
    "/v1/{name:repository}/trees/{tree}/lease",
    openapi_extra=_BODY,
    responses={
        200: success("The lease lasts longer now.", content=_LEASE),
        201: success("A new lease.", content=_LEASE),
        **failures(405, 413, 507),
    },
)
async def post_lease(request: Request, service: Service, name: Repository, tree: TreeText) -> JSONResponse:
    """Take a lease on a tree, or renew one. It is durable when this is answered."""
    document = await read_object(request, service, _LARGEST_BODY, "lease")
    holder = text_field(document, "holder", _LONGEST_HOLDER)
    ttl_s = document.get("ttl_s")
    if type(ttl_s) is not int or not SHORTEST_S <= ttl_s <= LONGEST_S:
        raise InvalidError("body", f"ttl_s is no number of seconds, {SHORTEST_S} to {LONGEST_S}")
    digest = parse_tree(tree)
    if document.get("lease") is not None:
        known = parse_lease(text_field(document, "lease", 32))
        renewed = await service.writers.run(_renew, service, name, digest, known, holder, ttl_s)
        if renewed is not None:
            return _answer(renewed, ttl_s, 200)

    def look_up() -> object:
        service.treefiles.resolve(name, digest)
        return service.treefiles.origin(name, digest)

    origin = await service.threads.run(look_up)
    taken = await service.writers.run(service.store.leases.take, name, digest, holder, ttl_s, origin)
    return _answer(taken, ttl_s, 201)


@router.delete(
    "/v1/{name:repository}/trees/{tree}/lease/{lease}",
    status_code=204,
    response_class=Response,
    responses={204: success("It has ended."), **failures(405, 507)},
)
async def delete_lease(
    service: Service,
    name: Repository,
    tree: TreeText,
    lease: Annotated[str, Path(description="Id of the lease.", json_schema_extra={"pattern": _ID_PATTERN})],
) -> Response:
    """End a lease."""
    await service.writers.run(service.store.leases.release, name, parse_tree(tree), parse_lease(lease))
    return Response(status_code=204)


def parse_lease(text: str) -> bytes:
    """The id of a lease.

    Raises:
        InvalidError: it is none.
    """
    if not re.fullmatch(_ID_PATTERN[1:-1], text):
        raise InvalidError(text[:64], "the id of a lease has 32 hex digits")
    return bytes.fromhex(text)


def _renew(service: Context, name: str, tree: bytes, lease: bytes, holder: str, ttl_s: int) -> Lease | None:
    try:
        return service.store.leases.renew(name, tree, lease, holder, ttl_s)
    except LeaseUnknownError:
        return None


def _answer(lease: Lease, ttl_s: int, status: int) -> JSONResponse:
    return JSONResponse({"id": lease.id.hex(), "ttl_s": ttl_s, "expires_s": lease.expires_ns // 10**9}, status)
