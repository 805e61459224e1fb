"""What every route works with: the store, the sessions, the settings, and the threads that block for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request

if TYPE_CHECKING:
    from pagepool_service.routes.streaming import Threads
    from pagepool_service.settings import Settings
    from pagepool_service.store.registry import Registry
    from pagepool_service.store.store import Store
    from pagepool_service.trees import Trees
    from pagepool_service.uploads import Uploads


@dataclass(frozen=True, slots=True)
class Context:
    """One worker's share of the service."""

    settings: Settings
    store: Store
    uploads: Uploads
    threads: Threads
    trees: Trees

    @property
    def registry(self) -> Registry:
        """The catalogue."""
        return self.store.registry


async def _context(request: Request) -> Context:
    return cast("Context", request.app.state.context)


Service = Annotated[Context, Depends(_context)]
