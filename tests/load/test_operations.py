"""What a client does, one thing after the other, in every mode, at a real service."""

from __future__ import annotations

import random
from contextlib import ExitStack, closing, nullcontext
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.library import Client
from pagepool.load.access import MODES, open_access
from pagepool.load.measures import Measures
from pagepool.load.mix import Mix
from pagepool.load.operations import Operations
from pagepool.load.plan import LoadPlan
from pagepool.load.preparing import Prepared, prepare
from pagepool.load.recording import Target
from pagepool.load.truth import PAGE, Truth
from pagepool.load.versions import Version
from pagepool.node.client import NodeClient
from pagepool.node.places import NodePlaces
from pagepool.oci import Reference
from pagepool.transport.profiles import ProfileClient
from tests.load.conftest import damage, sample_files
from tests.service.pushes import push_image
from tests.support.nodeserver import require_kernel_mounts, running_node
from tests.support.tools import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.server import Service

    Begin = Callable[..., Operations]

APP = (Reference("app", "1"), Reference("app", "2"))


@pytest.fixture
def prepared(service: Service, tmp_path: Path) -> Prepared:
    """app:1 and app:2."""
    return _prepare(service, tmp_path, *APP)


def _prepare(service: Service, directory: Path, *references: Reference) -> Prepared:
    with Client(service.url, directory=directory / "own") as client:
        return prepare(
            client, references, directory, trace=None, seed=1, counting=lambda *_: nullcontext(lambda _: None)
        )


@pytest.fixture
def begin(service: Service, tmp_path: Path) -> Iterator[Begin]:
    """Makes clients: of what was prepared, with a number, in a mode."""
    with ExitStack() as stack:

        def make(prepared: Prepared, number: int = 1, mode: str = "library", **more: object) -> Operations:
            node = NodeClient(NodePlaces(tmp_path / "node", tmp_path / "run"))
            if mode == "kernel":
                node = stack.enter_context(running_node(tmp_path))
            plan = LoadPlan(
                *(service.url, prepared.images, prepared.base, "run", 2, 1.0, Mix()),
                *(1.0, mode, 1, 0.0, 1.0),
            )
            work = tmp_path / f"client-{number}"
            work.mkdir()
            client = Client(service.url, directory=tmp_path / "pool", **more)  # type: ignore[arg-type] # as it is given
            access = open_access(mode, client, work, node)
            stack.callback(access.close)
            targets = [Target(one, Truth.open(prepared.truths[one.truth])) for one in prepared.images]
            made = Operations(plan, number, access, client.registry, targets, Measures())
            stack.callback(made.close)
            made.begin()
            return made

        yield make


def _measures(operations: Operations) -> Measures:
    return operations._measures


@pytest.mark.parametrize("mode", MODES)
def test_everything_in_every_mode(service: Service, begin: Begin, tmp_path: Path, mode: str) -> None:
    if mode == "fuse":
        require("fusermount3")
    if mode == "kernel":
        require_kernel_mounts()
    prepared = _prepare(service, tmp_path, *(APP if mode == "library" else APP[1:]))
    operations = begin(prepared, 1, mode)
    names = ["start", *["read"] * 30, *["write"] * (0 if mode == "http" else 40), "push", "start"]
    assert all(operations.run(name) for name in names), _measures(operations).failures
    operations.finish()
    operations.close()
    measures = _measures(operations)
    assert (measures.errors, measures.mismatches) == (0, 0), (measures.failures, measures.wrong)
    done = {name: one.durations.count for name, one in measures.operations.items()}
    expected = {"first": 1, "start": 1, "read": 30, "push": 1, "ready": 1} | ({} if mode == "http" else {"write": 40})
    assert expected.items() <= done.items()
    assert done["file"] >= 2 * min(len(image.trace) for image in prepared.images)
    assert measures.checked_pages >= sum(done.values()) - done["push"] - done["start"] - done["first"]
    assert bool(measures.hits + measures.misses) == (mode == "library")


def test_a_start_takes_what_others_have_pushed(prepared: Prepared, begin: Begin) -> None:
    pusher, reader = begin(prepared, 1), begin(prepared, 2)
    for number in (1, 2):
        assert pusher.run("push")
        assert pusher.ready == number
        reader.published = {1: number}
        while reader._seen.get(1) != number:
            assert reader.run("start")
    measures = _measures(reader)
    assert measures.operations["take"].durations.count == 2
    assert (measures.errors, measures.mismatches) == (0, 0), (measures.failures, measures.wrong)


def test_an_old_version_and_a_foreign_one_are_wrong_bytes(prepared: Prepared, begin: Begin, service: Service) -> None:
    """A tag that shows less than was acknowledged; and a version whose layer is not what it says."""
    pusher, reader = begin(prepared, 1), begin(prepared, 2)
    assert pusher.run("push")
    reader._take(1, 2)
    stale = _measures(reader).wrong[-1]
    assert (stale.path, stale.expected) == ("pagepool-load/version", "version 2 or newer of client 1")
    version = Version(prepared.base, "run", 1, 2)
    changed = bytearray(version.files[b"pagepool-load/70000"])
    changed[PAGE * 3] ^= 1
    version.files[b"pagepool-load/70000"] = bytes(changed)
    with Client(service.url) as client:
        version.push(client.registry)
    reader._take(1, 2)
    manifest, foreign = _measures(reader).wrong[-2:]
    assert manifest.found == str(version.manifest.descriptor.digest) != manifest.expected
    assert (foreign.path, foreign.offset) == ("pagepool-load/70000", PAGE * 3)
    assert foreign.expected != foreign.found


@pytest.mark.parametrize("mode", ["library", "http"])
def test_a_damaged_object_is_wrong_bytes(service: Service, begin: Begin, tmp_path: Path, mode: str) -> None:
    content = random.Random(mode).randbytes(60 * PAGE)
    with httpx.Client(base_url=service.url, timeout=60) as http:
        push_image(http, f"victim-{mode}", "1", {"bin/model": content})
    with Client(service.url, directory=tmp_path / "filling") as client:
        client.image(f"victim-{mode}:1").fill()
    damage(service, content, 7 * PAGE)
    operations = begin(_prepare(service, tmp_path, Reference(f"victim-{mode}", "1")), 1, mode)
    for _ in range(60):
        operations.run("read")
    before = _measures(operations).mismatches
    operations.run("start")
    assert _measures(operations).mismatches == before + 1, "a start reads all of it"
    for wrong in _measures(operations).wrong:
        assert (wrong.path, wrong.offset) == ("bin/model", 7 * PAGE)


def test_what_the_service_has_learned_is_the_trace(service: Service, tmp_path: Path) -> None:
    files = ("usr/lib/lib3.so", "usr/bin/tool4", "etc/conf")
    with httpx.Client(base_url=service.url, timeout=60) as http:
        push_image(http, "learned", "1", sample_files(1))
    with Client(service.url, directory=tmp_path / "own") as client:
        image = client.image("learned:1")
        with closing(client.load_tree("learned", image.tree)) as tree:
            objects = []
            for path in files:
                ino = 1
                for name in path.encode().split(b"/"):
                    ino = tree.child(ino, name)
                objects.append(tree.object(tree.node(ino).object).digest)
        ProfileClient(client.session).record("learned", image.tree, objects)
    found = _prepare(service, tmp_path, Reference("learned", "1"))
    (planned,) = found.images
    assert planned.trace_source == "profile of 1 starts"
    truth = Truth.open(found.truths[planned.truth])
    assert [truth.path(step.file).decode() for step in planned.trace] == list(files)
    assert [step.size for step in planned.trace] == [len(sample_files(1)[path]) for path in files]
