"""The store's blobs and layers against a dict: any order of pushes, work, removals, damage, crashes and reopening.

The model is a dict of bytes and Python's own tarfile, gzip and zstandard; it shares no code with the store.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from pagepool.digest import Digest
from pagepool.errors import BlobUnknownError
from pagepool_service.maintenance import Maintenance
from pagepool_service.store.fsck import check_store
from pagepool_service.store.schema import LayerState
from pagepool_service.store.store import Store
from pagepool_service.store.sums import sum_file


@dataclass(frozen=True)
class Known:
    """What the model knows of a blob: its bytes, and the tar in it if it is a layer."""

    data: bytes
    tar: bytes | None


def _file(seed: int) -> bytes:
    """Few distinct files, so that layers share; some of several extents, some with a hole's worth of zeros."""
    randomness = random.Random(seed)
    kind = seed % 4
    if kind == 0:
        return randomness.randbytes(randomness.randrange(2000))
    if kind == 1:
        return b"%d " % seed * randomness.randrange(30_000)
    if kind == 2:
        return bytes(131072) + randomness.randbytes(100_000) + bytes(200_000)
    return randomness.randbytes(131072 * randomness.randrange(1, 3))


def _tar(seeds: list[int]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number, seed in enumerate(seeds):
            member = tarfile.TarInfo(f"dir/{number}-{seed}")
            content = _file(seed)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _packed(tar: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(tar, 1, mtime=0)
    if how == "members":
        middle = len(tar) // 2
        return gzip.compress(tar[:middle], 1, mtime=0) + gzip.compress(tar[middle:], 9, mtime=0)
    if how == "zstd":
        return zstandard.ZstdCompressor().compress(tar)
    return tar


class StoreMachine(RuleBasedStateMachine):
    """Rules are what a service does; invariants are what its users see."""

    blobs = Bundle("blobs")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="pagepool-model-"))
        self.model: dict[Digest, Known] = {}
        self.removed: set[Digest] = set()
        self.store = Store.open(self.directory / "data")

    def teardown(self) -> None:
        try:
            self.work_until_done()
            self.check_everything()
            self.store.close()
            report = check_store(self.directory / "data", quick=True)
            assert report.clean, report.problems
        finally:
            self.store.close()
            shutil.rmtree(self.directory)

    @initialize()
    def begin(self) -> None:
        """An empty store has nothing."""
        assert not self.store.blobs.exists(Digest.of(b""))

    # -- what a service does -----------------------------------------------------------------------------------

    @rule(
        target=blobs,
        seeds=st.lists(st.integers(0, 12), max_size=5),
        how=st.sampled_from(["plain", "gzip", "members", "zstd"]),
        algorithm=st.sampled_from(["sha256", "sha256", "sha512"]),
    )
    def push_layer(self, seeds: list[int], how: str, algorithm: str) -> Digest:
        """Push a layer."""
        tar = _tar(seeds)
        return self._push(_packed(tar, how), tar, algorithm)

    @rule(
        target=blobs, data=st.one_of(st.binary(max_size=100), st.integers(0, 12).map(lambda seed: b"{" + _file(seed)))
    )
    def push_other(self, data: bytes) -> Digest:
        """Push something that is no tar (an empty blob and one of zeros are)."""
        return self._push(data, None, "sha256")

    @rule(target=blobs, seeds=st.lists(st.integers(0, 12), min_size=1, max_size=3))
    def push_damaged(self, seeds: list[int]) -> Digest:
        """Push a layer whose gzip stream is cut short."""
        return self._push(gzip.compress(_tar(seeds), 1, mtime=0)[:-9], None, "sha256")

    def _push(self, data: bytes, tar: bytes | None, algorithm: str) -> Digest:
        path = self.store.uploads / "upload"
        path.write_bytes(data)
        sums = sum_file(path, algorithm).sums()
        assert sums.digest.raw == hashlib.new(algorithm, data).digest()
        self.store.blobs.admit(path, sums, self.store.registry.linker("repository", sums.digest))
        assert not path.exists()
        self.model[sums.digest] = Known(data, tar)
        return sums.digest

    @rule(count=st.integers(1, 4))
    def work(self, count: int) -> None:
        """Some of the work that waits is done."""
        maintenance = Maintenance(self.store)
        for _ in range(count):
            if not maintenance.run_one():
                return

    @rule()
    def begin_and_be_killed(self) -> None:
        """A maintenance process takes a job and is never heard of again; the service starts anew."""
        self.store.jobs.begin_next(3)
        self._reopen()
        self.store.jobs.release_all()

    @rule()
    def reopen(self) -> None:
        """The service is restarted."""
        self._reopen()
        assert self.store.blobs.sweep_spool() == 0

    def _reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.directory / "data")

    @rule(digest=consumes(blobs))
    def remove(self, digest: Digest) -> None:
        """A blob is deleted, if it was not already."""
        if digest in self.model:
            self.store.registry.delete_blob("repository", digest)
            del self.model[digest]
            self.removed.add(digest)

    # -- what users see ----------------------------------------------------------------------------------------

    @rule(digest=blobs, start=st.integers(0, 600_000), size=st.integers(0, 400_000))
    def read_range(self, digest: Digest, start: int, size: int) -> None:
        """Any range has the bytes that were pushed."""
        if digest not in self.model:
            return
        data = self.model[digest].data
        start = min(start, len(data))
        end = min(start + size, len(data))
        assert b"".join(self.store.blobs.read(digest, start, end)) == data[start:end]

    @invariant()
    def what_was_removed_is_unknown(self) -> None:
        """And what was pushed is there."""
        for digest in self.removed - set(self.model):
            with pytest.raises(BlobUnknownError):
                self.store.blobs.stat(digest)
        for digest, known in self.model.items():
            assert self.store.blobs.stat(digest).size == len(known.data)

    def work_until_done(self) -> None:
        """All the work is done; then nothing waits and the spool is empty."""
        Maintenance(self.store).run_all()
        assert self.store.jobs.peek() is None
        assert list((self.directory / "data" / "spool").iterdir()) == []

    def check_everything(self) -> None:
        """Every blob is read back, and has the state that it must have."""
        for digest, known in self.model.items():
            record = self.store.blobs.stat(digest)
            assert b"".join(self.store.blobs.read(digest)) == known.data
            if known.tar is not None:
                assert record.state is LayerState.READY
                assert record.diff_id == Digest.of(known.tar)
            elif known.data.strip(b"\0"):
                assert record.state is LayerState.UNMOUNTABLE
                assert record.reason


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
