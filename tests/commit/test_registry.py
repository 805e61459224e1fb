"""Commits into a real service: only what is new is sent, and the service reads what was committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pagepool.commit import CommitOptions, build_commit
from pagepool.digest import blake3_raw
from pagepool.image import TreeFile
from pagepool.layout import plan_copy, run_copy
from pagepool.oci import Descriptor, Reference
from pagepool.overlay import plan_diff
from pagepool.transport import RegistryClient, RegistrySink, RegistrySource, Session
from pagepool.transport.trees import TreeClient
from pagepool.vfs import TreeFileSystem
from tests.commit.changed import Changed
from tests.support.server import running_service

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A session with a service."""
    with running_service(tmp_path_factory.mktemp("service") / "data") as service, Session(service.url) as session:
        yield session


class Counting:
    """A watcher that notes which blobs were sent."""

    def __init__(self) -> None:
        self.sent: list[Descriptor] = []

    def begin(self, blobs: Sequence[Descriptor]) -> None: ...

    def progress(self, blob: Descriptor, count: int) -> None: ...

    def finish(self, blob: Descriptor, copied: bool) -> None:
        if copied:
            self.sent.append(blob)


class _Views:
    """The content of a changed file system, by the objects of a tree that should be the same."""

    def __init__(self, tree: TreeFile, contents: Iterable[bytes]) -> None:
        self._contents = sorted(contents)
        self._tree = tree

    def whole(self, index: int) -> memoryview:
        return self.view(index, 0, self._tree.object(index).size)

    def view(self, index: int, start: int, end: int) -> memoryview:
        digest = self._tree.object(index).digest
        (found,) = {data for data in self._contents if blake3_raw(data) == digest}
        return memoryview(found)[start:end]

    def prefetch(self, indices: Iterable[int]) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("same", [True, False], ids=["same repository", "another repository"])
def test_only_what_is_new_is_sent(session: Session, compression: str, same: bool) -> None:
    """Into the parent's repository, and into another one of the same service, which takes the layers from there."""
    changed = Changed()
    client = RegistryClient(session)
    base = f"{compression}/{same}".lower()
    target = base if same else f"{base}/new"
    run_copy(plan_copy(changed.parent), changed.parent, RegistrySink(client, Reference.parse(f"{base}:1")))
    parent = RegistrySource(client, Reference.parse(f"{base}:1"))
    watcher = Counting()
    options = CommitOptions(compression=compression)  # type: ignore[arg-type]
    with build_commit(changed.now, changed.plan(), parent, options) as new:
        sink = RegistrySink(client, Reference.parse(f"{target}:new"), mount_from=base)
        run_copy(plan_copy(new), new, sink, watcher=watcher)
        assert {blob.digest for blob in watcher.sent} == {new.manifest.config.digest, new.manifest.layers[-1].digest}
    tree = _tree(session, target, "new")
    made = TreeFileSystem(tree, _Views(tree, changed.now.data.values()))
    try:
        assert plan_diff(made, changed.now) == plan_diff(changed.now, made) == []
    finally:
        made.close()
        tree.close()


def _tree(session: Session, repository: str, reference: str) -> TreeFile:
    client = TreeClient(session)
    state = client.resolve(repository, reference)
    return TreeFile(client.fetch(repository, state.tree), state.tree.raw)
