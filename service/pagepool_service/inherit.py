"""What a tree without a start-up profile inherits from another tree of its repository: an older image, mostly.

Pure but for reading tree files. An object of the other tree that is here, too, is taken as it is. One that is not
stands for the file that had it: the object that this tree has at the same path is taken in its place, since what an
update replaces (libc, the interpreter) is what every start opens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagepool.image.member import Kind
from pagepool.image.treefile import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pagepool.image.treefile import TreeFile
    from pagepool_service.profiles import StartProfile


@dataclass(frozen=True, slots=True)
class Inherited:
    """A profile of another tree, as it is of use here: its objects in this tree, most urgent first."""

    source: StartProfile
    objects: Sequence[bytes]

    def parts(self) -> dict[bytes, tuple[int, ...]]:
        """Of the objects of which that is known, the extents that are read."""
        known = ((digest, self.source.seen.get(digest)) for digest in self.objects)
        told = ((digest, None if one is None else one.parts()) for digest, one in known)
        return {digest: parts for digest, parts in told if parts is not None}


def choose_similar(tree: TreeFile, profiles: Iterable[StartProfile]) -> StartProfile | None:
    """The profile most of whose objects are in the tree, the first of several; None if none has any."""
    best, most = None, 0.0
    for profile in profiles:
        wanted = profile.urgent()
        shared = sum(tree.find_object(digest) >= 0 for digest in wanted) / max(1, len(wanted))
        if profile.tree != tree.digest and shared > most:
            best, most = profile, shared
    return best


def inherit(tree: TreeFile, profile: StartProfile, other: Callable[[], TreeFile | None]) -> Inherited:
    """What a tree inherits of a profile.

    Args:
        other: the tree that the profile is of, if it is still to be had; only called if something is not here.
    """
    wanted = profile.urgent()
    absent = {digest for digest in wanted if tree.find_object(digest) < 0}
    older = other() if absent else None
    replaced = {} if older is None else find_replaced(older, tree, absent)
    found = (replaced.get(digest) if digest in absent else digest for digest in wanted)
    return Inherited(profile, list(dict.fromkeys(digest for digest in found if digest is not None)))


def find_replaced(older: TreeFile, newer: TreeFile, wanted: Iterable[bytes]) -> dict[bytes, bytes]:
    """Of objects of one tree, those that another has at the same paths; of several paths, any.

    Walks the directories that both have, about a microsecond or two for each name.
    """
    places = {older.find_object(digest): digest for digest in wanted}
    places.pop(-1, None)
    found: dict[bytes, bytes] = {}
    stack = [(ROOT, ROOT)]
    while stack and len(found) < len(places):
        before, now = stack.pop()
        numbers = dict(newer.entries(now))
        for name, number in older.entries(before):
            other = numbers.get(name)
            if other is None:
                continue
            kind = older.kind(number)
            if kind is Kind.DIRECTORY:
                stack.append((number, other))
            elif kind is Kind.REGULAR and (digest := places.get(older.node(number).object)) is not None:
                place = newer.node(other).object
                if place >= 0:
                    found.setdefault(digest, newer.object(place).digest)
    return found
