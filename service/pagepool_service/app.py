"""The HTTP application of one worker: routes, errors, and the description of the API.

Owns no state but what `create_app` is given. Everything that blocks runs in the worker's threads; the event loop only
moves bytes. The description is served under /v1/openapi.json; there is no page that loads scripts from elsewhere.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from pagepool.version import __version__
from pagepool_service.auth import open_authority
from pagepool_service.cache import ExtentCache
from pagepool_service.clienthabits import ClientHabits
from pagepool_service.codedtrees import CodedTrees
from pagepool_service.erofsimages import ErofsImages
from pagepool_service.making import Makings
from pagepool_service.observing import Observer
from pagepool_service.otherorigins import OwnOrigin
from pagepool_service.pools import open_pool
from pagepool_service.prebuild import WantedImages
from pagepool_service.profiles import Profiles
from pagepool_service.quotas import RepositoryQuotas
from pagepool_service.routes import (
    blobs,
    erofs,
    errors,
    extents,
    fill,
    health,
    images,
    leases,
    listings,
    manifests,
    objects,
    page,
    profiles,
    seeing,
    tokens,
    trees,
    uploads,
)
from pagepool_service.routes import (
    cache as cache_routes,
)
from pagepool_service.routes.access import authorize
from pagepool_service.routes.bodies import BodyMemory
from pagepool_service.routes.context import Context
from pagepool_service.routes.making import Makers
from pagepool_service.routes.streaming import Threads
from pagepool_service.seeing.service import Seeing
from pagepool_service.statistics import Statistics
from pagepool_service.treecache import TreeCache
from pagepool_service.treefiles import TreeFiles as TreeFilesOfStore
from pagepool_service.trees import Trees
from pagepool_service.uploadfiles import SessionLimit
from pagepool_service.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from starlette.types import ASGIApp

    from pagepool.pool import Pool
    from pagepool_service.auth.authority import Authority
    from pagepool_service.metrics.recording import RequestMetrics
    from pagepool_service.roster import Roster
    from pagepool_service.routes.context import TreeFiles
    from pagepool_service.seeing.tally import Tally
    from pagepool_service.settings import Settings
    from pagepool_service.store.store import Store
    from pagepool_service.tls import Certificate
    from pagepool_service.tracing.exporting import Tracing

# Threads that block for requests, by what for: see `Context`. No work of one kind waits for work of another. What takes
# seconds has few, so that its requests queue up behind each other and not before those for blobs.
_THREADS = {"threads": 32, "writers": 8, "listings": 2, "merging": 1, "counting": 1}
_FORMS = 8 << 20  # bytes of logins by form that are on their way in
# What scripts of pages may see of an answer, beside what every browser shows.
_EXPOSED = (
    *("Docker-Content-Digest", "Docker-Distribution-Api-Version", "Link", "Location", "Range", "Content-Range"),
    *("OCI-Subject", "OCI-Filters-Applied", "Docker-Upload-UUID", "Www-Authenticate", "ETag", "X-Request-Id"),
)
_TICK_S = 5.0
_REREAD_S = 1.0
# Uploads before blobs: an upload's path also has the form of a blob's, with the digest "uploads".
_REGISTRY = (health, tokens, listings, uploads, manifests, blobs)
_OURS = (images, trees, erofs, objects, extents, fill, leases, profiles, cache_routes, seeing, page)
_MODULES = (*_REGISTRY, *_OURS)


def create_app(
    settings: Settings,
    store: Store,
    *,
    treefiles: TreeFiles | None = None,
    cache: ExtentCache | None = None,
    authority: Authority | None = None,
    certificate: Certificate | None = None,
    roster: Roster | None = None,
    metrics: RequestMetrics | None = None,
    tally: Tally | None = None,
    place: int = 0,
    tracing: Tracing | None = None,
) -> Observer:
    """The application over an open store, which the caller closes after the application has ended.

    Args:
        treefiles: where trees come from; None for the service's own.
        cache: of objects; None for the service's own. It is closed with the application.
        authority: says who asks and what he may do; None to make one as the settings say.
        certificate: looked at again while the application runs; None where there is none.
        roster: of the service's processes; None where there are no others.
        metrics: where requests are counted; None to count none.
        tally: where they are counted for the page; None to count none.
        place: of this worker, from 0.
        tracing: makes spans; None to make none. It is closed with the application.
    """
    authority = authority or open_authority(settings)
    pool = None
    if cache is None:
        pool = open_pool(settings)
        cache = ExtentCache(store, pool, 0 if pool is None else pool.budget)
    executors = {name: ThreadPoolExecutor(count, thread_name_prefix=name) for name, count in _THREADS.items()}

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        ticking = [
            asyncio.create_task(_tick(cache, observer, context)),
            asyncio.create_task(_reread(authority, certificate)),
        ]
        yield
        for task in ticking:
            task.cancel()
        if authority is not None:
            authority.close()
        observer.flush()
        for name, executor in executors.items():
            executor.shutdown(cancel_futures=name in ("listings", "merging", "counting"))
        cache.close()
        if tracing is not None:
            tracing.close()

    threads = {
        name: Threads(executor, name, tracing, transfer_bytes=settings.transfer_bytes)
        for name, executor in executors.items()
    }
    figures = Seeing(settings, store, pool, roster, tally, place)
    context = _make_context(settings, store, treefiles, cache, pool, figures, threads, roster, authority)
    app = _make_app(lifespan)
    app.state.context = context
    observer = Observer(
        objects.ObjectFront(_open_to_pages(ClientHabits(app), settings), context),
        metrics,
        tally,
        place,
        access_log=settings.access_log,
        tracing=tracing,
    )
    return observer


def _open_to_pages(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Let web pages of allowed origins use the application from browsers (CORS), and those of others change nothing.

    Their browsers send credentials that they remember only where origins are named one by one.
    """
    origins = settings.allowed_origins
    guarded = OwnOrigin(app, origins, settings.external_url)
    if not origins:
        return guarded
    return CORSMiddleware(
        guarded,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        allow_credentials="*" not in origins,
        expose_headers=_EXPOSED,
    )


def _make_app(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> FastAPI:
    """The routes, and what is said of them."""
    app = FastAPI(
        title="pagepool",
        summary="A container image registry with a deduplicated store.",
        version=__version__,
        openapi_url="/v1/openapi.json",
        dependencies=[Depends(authorize)],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    for module in _MODULES:
        app.include_router(module.router)
    errors.install(app, [route for module in _MODULES for route in module.router.routes])
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]
    return app


def _make_context(
    settings: Settings,
    store: Store,
    treefiles: TreeFiles | None,
    cache: ExtentCache,
    pool: Pool | None,
    figures: Seeing,
    threads: dict[str, Threads],
    roster: Roster | None,
    authority: Authority | None,
) -> Context:
    """What routes work with."""
    merged = Trees(store)
    trees_at = None if settings.read_only else settings.data / "trees"
    makings = Makings(None if trees_at is None else trees_at / "making")
    if treefiles is None:
        treefiles = TreeFilesOfStore(store, merged, None if trees_at is None else TreeCache(trees_at), makings)
    return Context(
        settings,
        store,
        Uploads(store, max_size=settings.max_blob_bytes, quota_bytes=settings.quota_bytes),
        SessionLimit(store.uploads, settings.max_uploads, settings.max_uploads_per_user),
        merged,
        treefiles,
        CodedTrees(),
        ErofsImages(store, None if trees_at is None else trees_at / "erofs", makings=makings),
        Profiles(settings.data / "profiles", readonly=settings.read_only),
        WantedImages(settings.data),
        cache,
        pool,
        Statistics(store),
        figures,
        **threads,
        makers=Makers(threads["merging"], makings.steps),
        bodies=BodyMemory(settings.body_bytes),
        forms=BodyMemory(min(settings.body_bytes, _FORMS)),
        roster=roster,
        authority=authority,
        quotas=RepositoryQuotas(store, settings.repository_quota_bytes, authority),
    )


async def _tick(cache: ExtentCache, observer: Observer, service: Context) -> None:
    sampling: asyncio.Future[None] | None = None
    while True:
        observer.flush()
        if (sampling is None or sampling.done()) and service.seeing.is_due():
            sampling = service.counting.start(service.seeing.sample)
        await asyncio.sleep(_TICK_S)
        await asyncio.to_thread(cache.tick)


async def _reread(authority: Authority | None, certificate: Certificate | None) -> None:
    """Look again and again whether files have changed: at once, too, since a worker may be started long after them."""
    while authority is not None or certificate is not None:
        if authority is not None and await asyncio.to_thread(authority.refresh):
            authority.renew()
        if certificate is not None:
            await asyncio.to_thread(certificate.refresh)
        await asyncio.sleep(_REREAD_S)


def _description(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, corrected where it says what is not so.

    It adds an answer 422 everywhere, and ours are OCI's errors; and it says that a parameter which may be left out may
    be null, which a query cannot say.
    """
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        for operation in (operation for path in schema["paths"].values() for operation in path.values()):
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
            for parameter in operation.get("parameters", []):
                if parameter["schema"].pop("anyOf", None):
                    parameter["schema"].setdefault("type", "string")
        for name in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema
