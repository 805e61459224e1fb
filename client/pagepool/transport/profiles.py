"""Start-up profiles of a pagepool service: what containers open and read first. Blocks; thread-safe."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pagepool.digest import Digest
from pagepool.errors import InvalidError, LimitError, NameUnknownError, ProfileUnknownError, TreeUnknownError
from pagepool.extents import format_ranges, parse_ranges
from pagepool.oci.fields import Object, load_object
from pagepool.transport.answers import Subject
from pagepool.transport.auth import repository_scope
from pagepool.transport.http import Call, Session
from pagepool.transport.service import answer_error

MOST_OBJECTS = 16384
"""Of one start."""
MOST_EXTENTS = 65536
"""Of all objects of one start."""
_MOST_SAID = 8 << 20
"""Bytes of a profile with as many of both."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a service has learned of the starts of a tree's containers.

    Args:
        objects: raw BLAKE3, most urgent first: those seen in at least a quarter of the starts.
        parts: of those of which that is known, the numbers of the extents that are read. The service has checked them
            only when they were told: they may be beyond the object's end.
        starts: how many starts it was learned from; old ones fade.
        tree: that it was learned from: another than was asked for, if it is inherited.
        updated_ns: when the last start was recorded, in nanoseconds since 1970.
    """

    objects: tuple[bytes, ...]
    starts: int
    tree: Digest
    updated_ns: int = 0
    parts: Mapping[bytes, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListedProfile:
    """An entry of the list of a repository's profiles.

    Args:
        tree: that it is of.
        images: manifests of the repository that become the tree; none if they were deleted.
        starts: as in `Profile`.
        updated_ns: as in `Profile`.
        objects: how many it knows, also of those that are seldom seen.
    """

    tree: Digest
    images: tuple[Digest, ...]
    starts: int
    updated_ns: int
    objects: int


class ProfileClient:
    """The profile routes. The caller closes the session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, name: str, tree: Digest, *, similar: bool = False) -> Profile | None:
        """The profile of a tree; None if nothing was learned yet.

        Args:
            similar: if so, what the tree inherits from another tree of the repository: its objects are all of this one.

        Raises:
            TreeUnknownError: the repository does not have the tree.
            LimitError, ResponseError: the answer is too large, or of too many extents, or cannot be understood.
        """
        params = (("similar", "1"),) if similar else ()
        about = Subject(TreeUnknownError, str(tree), name)
        call = Call("GET", _path(name, tree), about, params=params, scope=repository_scope(name), limit=_MOST_SAID)
        try:
            answer = load_object(self._session.request(call).content, "answer", answer_error)
        except ProfileUnknownError:
            return None
        objects = tuple(_raw(answer, text) for text in answer.strings("objects"))
        parts = _parts(answer)
        return Profile(objects, answer.integer("starts"), answer.digest("tree"), answer.integer("updated_ns"), parts)

    def record(
        self, name: str, tree: Digest, objects: Sequence[bytes], parts: Mapping[bytes, Collection[int]] | None = None
    ) -> None:
        """Tell of one start.

        Args:
            objects: raw BLAKE3 of objects of the tree, in the order in which they were opened; of more than
                `MOST_OBJECTS` the first are sent.
            parts: of those of which that is known, the numbers of the extents that were read; of more than
                `MOST_EXTENTS` the first are sent.

        Raises:
            TreeUnknownError, ObjectUnknownError: the repository does not have the tree, or the tree not the object.
            ReadOnlyError, StoreFullError: the service learns nothing now.
        """
        sent = objects[:MOST_OBJECTS]
        document = {"objects": [digest.hex() for digest in sent], "extents": _texts(sent, parts or {})}
        body = json.dumps(document).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        about = Subject(TreeUnknownError, str(tree), name)
        # Not sent again: what was counted already would be counted twice, and nobody misses one start.
        call = Call("POST", _path(name, tree), about, headers=headers, body=lambda: (body,), repeatable=False)
        call = replace(call, scope=repository_scope(name))
        self._session.request(call)

    def delete(self, name: str, tree: Digest) -> None:
        """Have the service forget what it learned of a tree.

        Raises:
            ProfileUnknownError: there is nothing.
            ReadOnlyError: the service is read-only.
        """
        about = Subject(ProfileUnknownError, str(tree), name)
        self._session.request(
            Call("DELETE", _path(name, tree), about, expect=(204,), scope=repository_scope(name, "pull,delete"))
        )

    def list(self, name: str) -> list[ListedProfile]:
        """The profiles of a repository, the one that was added to last first.

        Raises:
            NameUnknownError: there is no such repository.
        """
        call = Call("GET", f"/v1/{name}/profiles", Subject(NameUnknownError, name, name), scope=repository_scope(name))
        answer = load_object(self._session.request(call).content, "answer", answer_error)
        return [
            ListedProfile(
                one.digest("tree"),
                one.digests("images"),
                one.integer("starts"),
                one.integer("updated_ns"),
                one.integer("objects"),
            )
            for one in answer.objects("profiles")
        ]


def _path(name: str, tree: Digest) -> str:
    return f"/v1/{name}/trees/{tree}/profile"


def _texts(objects: Sequence[bytes], parts: Mapping[bytes, Collection[int]]) -> dict[str, str]:
    """What is sent of the extents of objects."""
    texts, left = {}, MOST_EXTENTS
    for digest in objects:
        if digest in parts and len(parts[digest]) <= left:
            left -= len(parts[digest])
            texts[digest.hex()] = format_ranges(parts[digest])
    return texts


def _parts(answer: Object) -> dict[bytes, tuple[int, ...]]:
    """The extents of all objects together are bounded: a few bytes can stand for very many."""
    found, left = {}, MOST_EXTENTS
    for digest, text in answer.string_map("extents").items():
        try:
            numbers = parse_ranges(text, MOST_EXTENTS, left)
        except InvalidError:
            answer.refuse("extents", f"{text[:80]!r} is no list of extents")
        except LimitError:
            answer.refuse("extents", f"are more than {MOST_EXTENTS}")
        found[_raw(answer, digest)] = numbers
        left -= len(numbers)
    return found


def _raw(answer: Object, text: str) -> bytes:
    try:
        return Digest.parse(f"blake3:{text}").raw
    except InvalidError:
        answer.refuse("objects", f"{text[:80]!r} is no digest")
