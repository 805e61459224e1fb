"""What every route works with: the store, the sessions, the settings, and the threads that block for them.

There are threads for each kind of work, so that none keeps another waiting: least of all pulls, which are most of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol, cast

from fastapi import Depends, Request

if TYPE_CHECKING:
    from collections.abc import Container

    from pagepool.content import SharedPool, Sharing
    from pagepool.digest import Digest
    from pagepool.image.treefile import TreeFile
    from pagepool.pool import Pool
    from pagepool_service.auth.authority import Authority
    from pagepool_service.cache import ExtentCache
    from pagepool_service.codedtrees import CodedTrees
    from pagepool_service.erofsimages import ErofsImages
    from pagepool_service.images import ImageView
    from pagepool_service.prebuild import WantedImages
    from pagepool_service.profiles import Profiles
    from pagepool_service.quotas import RepositoryQuotas
    from pagepool_service.roster import Roster
    from pagepool_service.routes.bodies import BodyMemory
    from pagepool_service.routes.making import Makers
    from pagepool_service.routes.streaming import Threads
    from pagepool_service.seeing.service import Seeing
    from pagepool_service.settings import Settings
    from pagepool_service.statistics import Statistics
    from pagepool_service.store.registry import Registry
    from pagepool_service.store.store import Store
    from pagepool_service.trees import Trees
    from pagepool_service.uploadfiles import SessionLimit
    from pagepool_service.uploads import Uploads


class TreeFiles(Protocol):
    """Says which trees a repository has: the authorisation of every route below a tree."""

    def known(self, name: str, view: ImageView) -> TreeFile | None:
        """The tree of an image of a repository, if it was made before."""
        ...

    def build(self, name: str, view: ImageView) -> TreeFile:
        """The tree of an image of a repository. Blocks while it is made."""
        ...

    def resolve(self, name: str, tree: bytes, /) -> TreeFile:
        """The tree. Blocks.

        Raises:
            TreeUnknownError: it is none of this repository's, whether it is another's or nobody's.
        """
        ...

    def origin(self, name: str, tree: bytes, /) -> tuple[Digest, tuple[Digest, ...]]:
        """What a tree was made from: a manifest, and the diff_ids of its layers, lowest first. Blocks.

        Raises:
            TreeUnknownError: as `resolve`.
        """
        ...

    def manifests(self, name: str, tree: bytes, /) -> list[Digest]:
        """The manifests of the repository all of whose layers became the tree, those that are still there. Blocks."""
        ...

    def measure_sharing(self, present: Container[bytes], /) -> Sharing:
        """How much of a pool is of several images. Blocks."""
        ...

    def warm(self, name: str, tree: bytes, /) -> TreeFile | None:
        """The same if it is known without asking, else None. Takes microseconds."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """One worker's share of the service.

    Args:
        treefiles: of images that are ready, by repository.
        coded_trees: the same as they are sent.
        erofs: images of trees for the kernel.
        profiles: of containers' starts, by repository and tree.
        wanted: notes on pushed images, of which trees are made ahead.
        cache: of objects.
        pool: what that keeps them in; None if nothing is kept.
        seeing: what an operator sees.
        threads: for what reads, and for bodies on their way in: nothing that takes the store's writer lock.
        writers: for what takes that lock, and may wait for it.
        listings: for pages of images.
        merging: for trees and their images.
        makers: of these, each for all who ask for it.
        counting: for statistics.
        bodies: memory for documents on their way in.
        forms: the same for those of strangers who log in: they keep nobody else's waiting.
        roster: of the processes of the service; None where this is the only one.
        authority: says who asks and what he may do; None where everybody may do everything.
        quotas: of the repositories.
    """

    settings: Settings
    store: Store
    uploads: Uploads
    sessions: SessionLimit
    trees: Trees
    treefiles: TreeFiles
    coded_trees: CodedTrees
    erofs: ErofsImages
    profiles: Profiles
    wanted: WantedImages
    cache: ExtentCache
    pool: Pool | None
    statistics: Statistics
    seeing: Seeing
    threads: Threads
    writers: Threads
    listings: Threads
    merging: Threads
    makers: Makers
    counting: Threads
    quotas: RepositoryQuotas
    bodies: BodyMemory
    forms: BodyMemory
    roster: Roster | None = None
    authority: Authority | None = None

    @property
    def forever(self) -> str:
        """`Cache-Control` of what never changes. Where users log in, no cache that others share may keep it."""
        return f"{'public' if self.authority is None else 'private'}, max-age=31536000, immutable"

    @property
    def shared_pool(self) -> SharedPool | None:
        """The pool that clients on this machine may read; None if they may not, or there is none."""
        return self.cache.pool if self.settings.shares_pool else None

    @property
    def registry(self) -> Registry:
        """The catalogue."""
        return self.store.registry


async def _context(request: Request) -> Context:
    return cast("Context", request.app.state.context)


Service = Annotated[Context, Depends(_context)]
