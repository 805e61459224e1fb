"""Several maintenance processes read layers that share files, at the same time, into one store."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

from pagepool.digest import Digest
from pagepool_service.maintenance import Maintenance
from pagepool_service.store.environment import Table
from pagepool_service.store.fsck import check_store
from pagepool_service.store.schema import LayerState
from pagepool_service.store.store import Store
from pagepool_service.store.totals import Totals
from tests.store.helpers import gzipped, make_tar, noise, push, read, text, zstd

PROCESSES = 3


def _work(data: Path, slot: int) -> None:
    with Store.open(data) as store:
        Maintenance(store, slot=slot).run_all()


def test_layers_that_share_files_are_read_at_once(data: Path) -> None:
    randomness = random.Random(3)
    contents = [text(randomness.randrange(1, 500_000), number) for number in range(30)] + [
        noise(400_000),
        bytes(300_000),
    ]
    tars = {}
    with Store.open(data) as store:
        for number in range(18):
            chosen = randomness.sample(range(len(contents)), 12)
            tar = make_tar({f"{number}/{index}": contents[index] for index in chosen})
            blob = (gzipped, zstd, bytes)[number % 3](tar)
            tars[push(store, blob)] = (tar, blob)
            if number % 4 == 0:  # the same tar in another compression, perhaps in another process
                again = gzipped(tar, 1)
                tars[push(store, again)] = (tar, again)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(data, slot)) for slot in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with Store.open(data) as store:
        for digest, (tar, blob) in tars.items():
            record = store.blobs.stat(digest)
            assert (record.state, record.diff_id) == (LayerState.READY, Digest.of(tar))
            assert read(store, digest) == blob
        with store.env.read() as txn:
            totals = Totals.load(txn)
            # Whatever the processes did at once, each extent is stored once.
            assert totals.extents == txn.count(Table.EXTENTS)
            assert totals.dead_bytes == 0
            assert txn.count(Table.LAYERS) == len({tar for tar, _ in tars.values()})
            assert store.jobs.count(txn) == 0
    assert list((data / "spool").iterdir()) == []
    report = check_store(data)
    assert (report.problems, report.notes) == ([], [])
