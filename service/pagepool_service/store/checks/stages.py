"""The stages of a check, in order, and how one process runs them.

Records come before what is read by them, so that the cause of a damage is told before its consequences. A stage that
fails as a whole (pages below the records are damaged) is reported, and the next one begins.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

from pagepool.errors import PagepoolError
from pagepool_service.store.checks import blobs, catalogue, content, frames, recipes, totals
from pagepool_service.store.checks.concern import find_concerned
from pagepool_service.store.checks.context import Context
from pagepool_service.store.checks.findings import CarriedError, Findings, Message
from pagepool_service.store.checks.selection import select_images
from pagepool_service.store.environment import Environment
from pagepool_service.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from pagepool_service.store.checks.findings import Request

log = logging.getLogger("pagepool.fsck")

STAGES: tuple[tuple[str, Callable[[Context], None]], ...] = (
    ("meta", catalogue.check_rest),
    ("frames", frames.check_frames),
    ("extents", frames.check_extents),
    ("objects", recipes.check_objects),
    ("recipes", recipes.check_recipes),
    ("jobs", blobs.check_jobs),
    ("blobs", blobs.check_blobs),
    ("links", catalogue.check_links),
    ("manifests", catalogue.check_manifests),
    ("manifest_links", catalogue.check_manifest_links),
    ("tags", catalogue.check_tags),
    ("referrers", catalogue.check_referrers),
    ("leases", catalogue.check_leases),
    ("layers", content.check_layers),
    ("blobs' content", content.check_blob_content),
    ("objects' content", content.check_remaining_objects),
    ("spool", blobs.check_spool),
    ("totals", totals.check_totals),
)
# Those that can be kept to some images; the others are of the store as a whole.
_OF_IMAGES = frozenset({"blobs", "manifests", "layers", "blobs' content"})
CONCERN = len(STAGES)
"""The number of the step after all stages: which images are concerned."""


def run_stages(request: Request, send: Callable[[Message], None]) -> None:
    """Check a store, from the stage `request.first` on. Blocks. The last message is of kind `end`, or `error`.

    Args:
        send: takes the messages, from any thread, one at a time.
    """
    findings = Findings(send, list(request.problems))
    try:
        env = Environment.open(request.data / "store", readonly=True, shared=True)
        with Store(request.data, env) as store:
            selection = select_images(store.registry, request.images) if request.images else None
            # Of a snapshot: what LMDB says of its last transaction can be ahead of what readers are given.
            with env.read() as txn:
                version = txn.version
            context = Context(store, findings, quick=request.quick, selection=selection, version=version)
            context.complete = request.first == 0
            _run(context, request.first)
    except PagepoolError as error:
        send(Message("error", error=CarriedError.of(error)))
        return
    send(Message("end"))


def _run(context: Context, first: int) -> None:
    context.bad_frames = {int(name) for name in context.findings.names("frame") if name.isdigit()}
    for number, (name, check) in enumerate(STAGES):
        if number < first or (context.selection is not None and name not in _OF_IMAGES):
            continue
        context.findings.begin(number)
        try:
            check(context)
        except (PagepoolError, struct.error, ValueError, LookupError) as error:
            # Whatever reading damaged pages can come to: the next table may be sound.
            log.debug("the check of %s ended early", name, exc_info=True)
            context.findings.problem("database", name, f"the check could not go on: {error}")
    if context.findings.problems and first <= CONCERN:
        context.findings.begin(CONCERN)
        context.findings.stage("images", 0)
        for (kind, name), images in find_concerned(context).items():
            for problem in context.findings.problems:
                if (problem.kind, problem.name) == (kind, name):
                    context.findings.send(Message("images", problem=replace(problem, images=images)))
