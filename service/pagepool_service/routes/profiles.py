"""Start-up profiles: what the containers of a tree open and read first, told by those that ran them, asked by the next.

Never needed: a profile is a hint, learned from what clients send, and every one can be seen and deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Never

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from pagepool.digest import Digest
from pagepool.errors import (
    BusyError,
    InvalidError,
    LimitError,
    ObjectUnknownError,
    ProfileUnknownError,
    TreeUnknownError,
)
from pagepool.extents import format_ranges, parse_ranges
from pagepool_service.inherit import Inherited, choose_similar, inherit
from pagepool_service.profiles import MOST_EXTENTS, MOST_OBJECTS, MOST_STARTS, StartProfile
from pagepool_service.routes.bodies import json_body, read_object
from pagepool_service.routes.context import Service
from pagepool_service.routes.described import failures, json_object, success
from pagepool_service.routes.objects import TreeText, parse_object, parse_tree
from pagepool_service.routes.parameters import Repository

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pagepool.image.treefile import TreeFile
    from pagepool_service.routes.context import Context

router = APIRouter()

_PATH = "/v1/{name:repository}/trees/{tree}/profile"
_LARGEST_BODY = 2 << 20
_MOST_COMPARED = 8  # profiles of other trees, the newest
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_OBJECTS: dict[str, Any] = {
    "type": "array",
    "maxItems": MOST_OBJECTS,
    "items": {"type": "string", "pattern": r"^(blake3:)?[0-9a-f]{64}$"},
}
_EXTENTS: dict[str, Any] = {
    "type": "object",
    "propertyNames": {"pattern": r"^(blake3:)?[0-9a-f]{64}$"},
    "additionalProperties": {"type": "string", "pattern": r"^([0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)?$"},
}
_STARTS = {**_COUNT, "maximum": MOST_STARTS, "description": "How many starts it was learned from; old ones fade."}
_BODY = json_body(
    "Objects of the tree in the order in which a container opened them in its first seconds.",
    ("objects",),
    objects=_OBJECTS,
    extents={
        **_EXTENTS,
        "description": "Of those of which that is known, the extents that were read: `0-3,7`, the first is 0.",
    },
)
_PROFILE = json_object(
    tree={**_TEXT, "description": "The tree that it was learned from; another than that asked for if it is inherited."},
    starts=_STARTS,
    updated_ns={**_COUNT, "description": "When the last start was recorded, in nanoseconds since 1970."},
    objects={**_OBJECTS, "description": "Those seen in at least a quarter of the starts, most urgent first."},
    extents={
        **_EXTENTS,
        "description": "Of those of which that is known, the extents that are read: `0-3,7`; none if it is empty. Of "
        "the others nothing is known.",
    },
)
_RECORDED = json_object(starts=_STARTS, objects={**_COUNT, "description": "How many it knows now."})
_LISTED = json_object(
    tree=_TEXT,
    images={"type": "array", "items": _TEXT, "description": "Manifests of the repository that become the tree."},
    starts=_STARTS,
    updated_ns=_COUNT,
    objects=_COUNT,
)["application/json"]["schema"]
_LIST = json_object(profiles={"type": "array", "items": _LISTED})

SimilarQuery = Annotated[
    str | None,
    Query(
        description="1: if nothing was learned of the tree, answer what it inherits from another one.",
        json_schema_extra={"enum": ["0", "1"]},
    ),
]


@router.post(
    _PATH,
    openapi_extra=_BODY,
    responses={200: success("It was counted.", content=_RECORDED), **failures(405, 413, 507)},
)
async def post_profile(request: Request, service: Service, name: Repository, tree: TreeText) -> JSONResponse:
    """Record which objects a container opened when it started, and what it read of them."""
    document = await read_object(request, service, _LARGEST_BODY, "list of objects")
    objects = _parse_objects(document.get("objects"))
    extents = _parse_extents(document.get("extents"))
    digest = parse_tree(tree)

    def record() -> StartProfile:
        found = service.treefiles.resolve(name, digest)
        unknown = next((one for one in objects if found.find_object(one) < 0), None)
        if unknown is not None:
            raise ObjectUnknownError(Digest("blake3", unknown))
        return service.profiles.record(name, digest, objects, _read_extents(found, objects, extents))

    profile = await service.threads.run(record)
    return JSONResponse({"starts": profile.starts, "objects": len(profile.seen)})


@router.get(_PATH, responses={200: success("What was learned.", content=_PROFILE), **failures()})
async def get_profile(service: Service, name: Repository, tree: TreeText, similar: SimilarQuery = None) -> JSONResponse:
    """Tell which objects the containers of a tree open first."""
    digest = parse_tree(tree)
    if similar not in (None, "0", "1"):
        raise InvalidError(similar[:32], "similar is 0 or 1")

    def find() -> Inherited:
        found = service.treefiles.resolve(name, digest)
        profile = service.profiles.get(name, digest)
        if profile is not None:
            return Inherited(profile, profile.urgent())
        return _inherited(service, name, found) if similar == "1" else _unknown(digest)

    answer = await service.threads.run(find)
    source = answer.source
    return JSONResponse(
        {
            "tree": str(Digest("blake3", source.tree)),
            "starts": source.starts,
            "updated_ns": source.updated_ns,
            "objects": [one.hex() for one in answer.objects],
            "extents": {one.hex(): format_ranges(parts) for one, parts in answer.parts().items()},
        }
    )


@router.delete(
    _PATH,
    status_code=204,
    response_class=Response,
    responses={204: success("It is forgotten."), **failures(405)},
)
async def delete_profile(service: Service, name: Repository, tree: TreeText) -> Response:
    """Forget what was learned of a tree, whether the repository still has it or not."""
    await service.threads.run(service.profiles.delete, name, parse_tree(tree))
    return Response(status_code=204)


@router.get(
    "/v1/{name:repository}/profiles",
    responses={200: success("Profiles, the one that was added to last first.", content=_LIST), **failures()},
)
async def list_profiles(service: Service, name: Repository) -> JSONResponse:
    """List what was learned of a repository's trees."""

    def describe() -> list[dict[str, Any]]:
        found = list(service.profiles.list(name))
        if not found:
            service.store.registry.listings.tags(name, 1)  # raises where there is no such repository
        return [
            {
                "tree": str(Digest("blake3", profile.tree)),
                "images": [str(image) for image in service.treefiles.manifests(name, profile.tree)],
                "starts": profile.starts,
                "updated_ns": profile.updated_ns,
                "objects": len(profile.seen),
            }
            for profile in found
        ]

    return JSONResponse({"profiles": await service.threads.run(describe)})


def _inherited(service: Context, name: str, tree: TreeFile) -> Inherited:
    """What a tree inherits from another of its repository.

    Raises:
        ProfileUnknownError: nothing.
    """
    profile = choose_similar(tree, service.profiles.list(name, _MOST_COMPARED))
    if profile is None:
        return _unknown(tree.digest)

    def other() -> TreeFile | None:
        try:
            return service.treefiles.resolve(name, profile.tree)
        except (TreeUnknownError, BusyError):
            return None

    return inherit(tree, profile, other)


def _unknown(tree: bytes) -> Never:
    raise ProfileUnknownError(Digest("blake3", tree))


def _parse_objects(objects: object) -> list[bytes]:
    """The objects of a start.

    Raises:
        InvalidError, DigestInvalidError: they are no digests.
        LimitError: they are more than `MOST_OBJECTS`.
    """
    if not isinstance(objects, list) or not all(isinstance(one, str) for one in objects):
        raise InvalidError("body", "it has no list of objects")
    if len(objects) > MOST_OBJECTS:
        raise LimitError("number of objects", len(objects), MOST_OBJECTS)
    return [parse_object(one) for one in objects]


def _parse_extents(extents: object) -> dict[bytes, str]:
    """What a start tells of the extents that it read.

    Raises:
        InvalidError, DigestInvalidError: that is not of objects, or no text.
        LimitError: it is of more than `MOST_OBJECTS`.
    """
    if extents is None:
        return {}
    if not isinstance(extents, dict) or not all(isinstance(one, str) for one in extents.values()):
        raise InvalidError("body", "its extents are no texts")
    if len(extents) > MOST_OBJECTS:
        raise LimitError("number of objects", len(extents), MOST_OBJECTS)
    return {parse_object(digest): text for digest, text in extents.items()}


def _read_extents(
    tree: TreeFile, objects: Collection[bytes], extents: Mapping[bytes, str]
) -> dict[bytes, tuple[int, ...]]:
    """The numbers of the extents that a start tells of; of objects that were not opened it tells nothing.

    Raises:
        InvalidError: an object does not have one of them.
        LimitError: they are more than `MOST_EXTENTS`.
    """
    found, left, opened = {}, MOST_EXTENTS, frozenset(objects)
    for digest, text in extents.items():
        if digest in opened:
            count = tree.object(tree.find_object(digest)).extent_count
            found[digest] = parse_ranges(text, count, left)
            left -= len(found[digest])
    return found
