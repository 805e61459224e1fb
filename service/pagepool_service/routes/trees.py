"""Tree files, by the digest that ``images/{reference}/tree`` names (docs/format/tree.md)."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from pagepool.digest import Digest
from pagepool_service.routes.blobs import is_known
from pagepool_service.routes.context import Service
from pagepool_service.routes.described import BINARY, failures, header, header_parameter, success
from pagepool_service.routes.objects import TreeText, parse_tree
from pagepool_service.routes.parameters import Repository

router = APIRouter()


@router.get(
    "/v1/{name:repository}/trees/{tree}",
    response_class=Response,
    openapi_extra={"parameters": [header_parameter("If-None-Match", "Answer 304 if the digest is among these.")]},
    responses={
        200: success("The tree file.", {"ETag": header("The digest, quoted.")}, BINARY),
        304: success("The client has it."),
        **failures(),
    },
)
async def get_tree_file(request: Request, service: Service, name: Repository, tree: TreeText) -> Response:
    """Read a tree file. It is compared with its digest when it is opened."""
    digest = parse_tree(tree)
    found = await service.threads.run(service.treefiles.resolve, name, digest)
    headers = {"ETag": f'"{Digest("blake3", digest)}"', "Cache-Control": "private, immutable, max-age=31536000"}
    if is_known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(bytes(found.raw), headers=headers, media_type="application/vnd.pagepool.tree.v1")
