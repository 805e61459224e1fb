"""The process that rebuilds layers: what it answers, and how it ends."""

from __future__ import annotations

import os
import select
import signal
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.errors import CorruptError
from pagepool_service.maintenance import Maintenance
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.schema import LayerState, parse_recipe_key
from pagepool_service.store.store import Store
from pagepool_service.streamtag import StreamTag, make_key
from pagepool_service.verifying import HereVerifier, Rebuilt, VerifierProcess
from tests.faults import flip_record, records
from tests.store.helpers import gzipped, ingest_all, make_tar, noise, push, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TAR = make_tar({"large": text(900_000, 1), "noise": noise(300_000, 2), "small": text(3000, 3)})


KEY = make_key()


def _tag(data: bytes) -> bytes:
    tag = StreamTag(KEY)
    tag.update(data)
    return tag.tag()


@pytest.fixture
def verifier(data: Path) -> Iterator[VerifierProcess]:
    """A process beside this one, over a store that is there."""
    Store.open(data).close()
    with VerifierProcess.start(data) as started:
        yield started


def _recipe(data: Path) -> tuple[int, list[int]]:
    keys = [parse_recipe_key(record.key) for record in records(data, Table.RECIPES)]
    return keys[0][0], [start for _, start in keys]


def test_a_layer_is_ready_through_it(verifier: VerifierProcess, data: Path) -> None:
    with Store.open(data) as store:
        digest = push(store, gzipped(TAR))
        Maintenance(store, verifier=verifier).run_all()
        record = store.blobs.stat(digest)
        assert record.state is LayerState.READY
        assert record.diff_id is not None
        assert record.diff_id.hex == sha256(TAR).hexdigest()
    assert check_store(data).clean


def test_it_answers_as_the_thread_does_time_and_again(verifier: VerifierProcess, data: Path) -> None:
    with Store.open(data) as store:
        push(store, gzipped(TAR))
        ingest_all(store)
    recipe, starts = _recipe(data)
    with Store.open(data) as store:
        here = HereVerifier(store).rebuild(recipe, KEY, starts)
    assert here.tag == _tag(TAR)
    assert here.diff_id.hex == sha256(TAR).hexdigest()
    assert [verifier.rebuild(recipe, KEY, starts) for _ in range(3)] == [here] * 3


class _WrongVerifier:
    """Rebuilds the same bytes in another order: as if chunks of the recipe had been mixed up."""

    def __init__(self, store: Store) -> None:
        self._right = HereVerifier(store)

    def rebuild(self, recipe: int, key: bytes, starts: Iterable[int]) -> Rebuilt:
        """See `Verifier`."""
        return self._right.rebuild(recipe, key, reversed(list(starts)))


def test_what_rebuilds_to_other_bytes_is_not_ready(data: Path) -> None:
    with Store.open(data) as store:
        digest = push(store, gzipped(make_tar({"first": text(5_000_000, 1), "second": text(5_000_000, 2)})))
        maintenance = Maintenance(store, verifier=_WrongVerifier(store))
        while store.blobs.stat(digest).state is LayerState.PENDING:
            maintenance.run_one()
        record = store.blobs.stat(digest)
        assert record.state is LayerState.UNMOUNTABLE
        assert "something else came in" in record.reason
    assert records(data, Table.LAYERS) == []
    assert records(data, Table.RECIPES) == []


def test_damage_is_named_and_the_next_request_answered(verifier: VerifierProcess, data: Path) -> None:
    with Store.open(data) as store:
        push(store, gzipped(TAR))
        ingest_all(store)
    recipe, starts = _recipe(data)
    flip_record(data, next(record for record in records(data, Table.FRAMES) if record.value[1] == 0), 100)
    with pytest.raises(CorruptError) as caught:
        verifier.rebuild(recipe, KEY, starts)
    assert caught.value.kind == "frame"
    with pytest.raises(CorruptError):
        verifier.rebuild(recipe + 1, KEY, [0])
    assert verifier.rebuild(recipe, KEY, []).tag == _tag(b"")


def test_its_end_is_an_error_and_leaves_the_job(data: Path) -> None:
    Store.open(data).close()
    with VerifierProcess.start(data) as verifier, Store.open(data) as store:
        digest = push(store, gzipped(TAR))
        os.kill(verifier.pid, signal.SIGKILL)
        with pytest.raises(ChildProcessError):
            Maintenance(store, verifier=verifier).run_all()
        assert store.blobs.stat(digest).state is LayerState.PENDING
        ingest_all(store)
        assert store.blobs.stat(digest).state is LayerState.READY
    assert check_store(data).clean


def test_it_ends_with_the_process_that_started_it(data: Path) -> None:
    Store.open(data).close()
    read_fd, write_fd = os.pipe()
    starter = os.fork()
    if not starter:
        try:
            started = VerifierProcess.start(data)
            os.write(write_fd, str(started.pid).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        pid = int(pipe.read())
    os.waitpid(starter, 0)
    # Its parent is gone, and nobody else may wait for it: the kernel closes this when it has ended.
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([watched], [], [], 30.0)[0]
    finally:
        os.close(watched)
