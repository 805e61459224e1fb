"""A client of a real service: what it says of pools that are full, gone, or cannot be used, and what it leaves."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

import pagepool
from pagepool.errors import (
    InvalidError,
    ManifestUnknownError,
    PoolFullError,
    ReferenceInvalidError,
    UnreachableError,
)
from pagepool.image.treestore import TreeStore
from pagepool.library.mounted import mount_in_background, plan_mount
from pagepool.pool import Scrubber
from pagepool.transport.trees import PoolPlace
from pagepool.units import human_size
from tests.service.pushes import push_image
from tests.support.descriptors import count_open
from tests.support.server import Service, running_service
from tests.support.trees import TreeBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator


LARGE = random.Random(1).randbytes(3 << 20)
FILES = {"large": LARGE, "small": b"small", "other": b"other" * 1000, "empty": b""}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "data") as running:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            push_image(http, "app", "1", FILES)
        yield running


def test_a_pool_that_is_too_small_is_said_to_be(service: Service, tmp_path: Path) -> None:
    """Files are read all the same; but nobody is told that the service is not needed any more."""
    with pagepool.Client(service.url, directory=tmp_path / "client", shared=False, budget=1 << 20) as client:
        image = client.image("app:1")
        with pytest.raises(PoolFullError, match=f"the pool is full: it does not keep {human_size(len(LARGE))} of the"):
            image.fill()
        with image.open() as root:
            assert {name: root.read_bytes(name) for name in FILES} == FILES
    with pagepool.Client(service.url, directory=tmp_path / "client", shared=False, budget=64 << 20) as client:
        assert client.image("app:1").fill() == sum(map(len, FILES.values()))
        service.stop()
        with client.tree("app", image.tree).open() as root:
            assert {name: root.read_bytes(name) for name in FILES} == FILES


@pytest.mark.parametrize("arguments", [("--cache-size", "0"), ()], ids=["without a pool", "with another pool"])
def test_a_service_that_was_started_again(service: Service, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """What was read from its old pool goes on being read, and the rest comes without it."""
    with pagepool.Client(service.url, directory=tmp_path / "client") as client:
        image = client.image("app:1")
        with image.open() as root:
            assert root.read_bytes("small") == FILES["small"]
            service.stop()
            shutil.rmtree(service.cache)
            service.arguments = arguments
            service.start()
            assert {name: root.read_bytes(name) for name in FILES} == FILES
        with client.image("app:1").open() as root:
            assert {name: root.read_bytes(name) for name in FILES} == FILES


def test_the_owner_of_a_pool_may_take_its_time(service: Service, tmp_path: Path) -> None:
    """A request for its pool ends before this client's patience does, whatever there is to fill."""
    with pagepool.Client(service.url, directory=tmp_path / "client", timeout_s=27) as client:
        image = client.image("app:1")
        asked: list[float | None] = []
        original = client.trees.fill

        def fill(*arguments: object, within_s: float | None = None, **more: object) -> int:
            asked.append(within_s)
            return original(*arguments, within_s=within_s, **more)  # type: ignore[arg-type]

        client.trees.fill = fill  # type: ignore[method-assign]
        with image.open() as root:
            assert root.read_bytes("large") == LARGE
    assert asked
    assert all(one is not None and one < 9 for one in asked)


def test_a_client_that_is_closed_opens_nothing(service: Service, tmp_path: Path) -> None:
    for shared in (True, False):
        client = pagepool.Client(service.url, directory=tmp_path / "client", shared=shared)
        image = client.image("app:1")
        root = image.open()
        client.close()
        assert root.read_bytes("empty") == b""
        before = count_open()
        for attempt in (image.open, partial(client.image, "app:1"), client.images):
            with pytest.raises(ValueError, match="closed"):
                attempt()
        assert count_open() == before
        root.close()


def test_directories_may_be_texts_and_relative(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay what they are though the program goes where there are others of these names."""
    one, two = tmp_path / "one", tmp_path / "two"
    for place in (two, one):
        place.mkdir()
        monkeypatch.chdir(place)
        client = pagepool.Client(service.url, directory="client", shared=False)
        root = client.image("app:1").overlay("upper")
        root.write_bytes("new", place.name.encode())
        if place == two:
            root.close()
            client.close()
    monkeypatch.chdir(two)
    assert root.read_bytes("small") == FILES["small"]
    root.discard()
    client.close()
    assert sorted(path.name for path in one.iterdir()) == ["client"]
    assert not any((two / "client/pool/objects").glob("*/*"))
    with (
        pagepool.Client(service.url, directory=tmp_path / "client", shared=False) as client,
        client.overlay(two / "upper") as root,
    ):
        assert root.read_bytes("new") == b"two"


def test_a_client_takes_some_time() -> None:
    for timeout_s in (0, -1):
        with pytest.raises(InvalidError, match=str(timeout_s)):
            pagepool.Client(timeout_s=timeout_s)


def test_a_commit_goes_to_its_own_service(service: Service, tmp_path: Path) -> None:
    """A name of another host is refused, as `image` does: it would be pushed here, and looked for there.

    Over an image that was opened by its tree alone there is none: nobody noted a manifest that could get a layer more.
    """
    with pagepool.Client(service.url, directory=tmp_path / "client") as client:
        with client.image("app:1").overlay(tmp_path / "upper") as root:
            root.write_bytes("new", b"new")
            with pytest.raises(ReferenceInvalidError, match="speaks to"):
                root.commit("registry.example.org/app:2")
            assert [found["tag"] for found in client.images()] == ["1"]
            root.commit(f"{service.host}/app:2")
        with client.image("app:2").open() as root:
            assert root.read_bytes("new") == b"new"
        with client.tree("app", client.image("app:2").tree).overlay(tmp_path / "other") as root:
            root.write_bytes("new", b"newer")
            with pytest.raises(ManifestUnknownError, match=str(root.image.tree)):
                root.commit("app:3")
            assert b"newer" in b"".join(root.diff())


def test_what_a_kernel_mount_wrote_is_no_overlay(service: Service, tmp_path: Path) -> None:
    """Whoever goes on by the library with what he has mounted as root is told why that cannot be."""
    (tmp_path / "work" / "upper").mkdir(parents=True)
    (tmp_path / "work" / "info.json").write_text("{}")
    with (
        pagepool.Client(service.url, directory=tmp_path / "client") as client,
        pytest.raises(InvalidError, match="a kernel mount wrote it: only a mount can change it"),
    ):
        client.image("app:1").overlay(tmp_path / "work")


def test_a_mount_hides_no_overlay(service: Service, tmp_path: Path) -> None:
    """Its own, which could not find its files any more when it writes its journal anew."""
    (tmp_path / "mount").mkdir()
    (tmp_path / "link").symlink_to("mount")
    with pagepool.Client(service.url, directory=tmp_path / "client") as client:
        image = client.image("app:1")
        for upper in (tmp_path / "mount", tmp_path / "mount/upper", tmp_path / "link/upper"):
            with pytest.raises(InvalidError, match="hidden"):
                image.mount(tmp_path / "mount", upper=upper)
            with pytest.raises(InvalidError, match="hidden"):
                mount_in_background(plan_mount(image, upper), tmp_path / "mount")
    assert not list((tmp_path / "mount").iterdir())


def test_a_place_that_cannot_be_is_no_pool(service: Service, tmp_path: Path) -> None:
    """Whatever a service says: its pool is not there, and the user's own is."""
    with pagepool.Client(service.url, directory=tmp_path / "client") as client:
        image = client.image("app:1")
        for path in ("/\0", "", "\udfff", "/dev/null", "x" * 5000):
            image.pool = PoolPlace("0" * 32, Path(path))
            with image.open() as root:
                assert root.read_bytes("small") == FILES["small"]


def test_damage_is_repaired_and_without_a_service_removed(service: Service, tmp_path: Path) -> None:
    """All that is damaged is found, whether or not it can be had again."""
    with pagepool.Client(service.url, directory=tmp_path / "client", shared=False) as client:
        image = client.image("app:1")
        image.fill()
        with client.open_pool() as pool:
            for reachable in (True, False):
                for digest in list(pool.digests()):
                    path = pool.path / "objects" / digest.hex()[:2] / digest.hex()[2:]
                    path.chmod(0o644)
                    path.write_bytes(b"?" * path.stat().st_size)
                if not reachable:
                    service.kill()
                report = Scrubber(pool, client.repair).run()
                assert [one.repaired for one in report.damaged] == [reachable] * 3
                assert len(list(pool.digests())) == (3 if reachable else 0)
            with image.open() as root, pytest.raises(UnreachableError):
                root.read_bytes("small")


def test_the_service_takes_as_many_descriptors_as_it_may(tmp_path: Path) -> None:
    """Else the objects that it has open and its connections have to do with what a shell allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    service = Service(tmp_path / "data")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        service.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        limits = [Path(f"/proc/{pid}/limits").read_text() for pid in service.children()]
        allowed = [
            int(line.split()[3]) for text in limits for line in text.splitlines() if line[:14] == "Max open files"
        ]
        assert max(allowed) == min(hard, 65536)
    finally:
        service.stop()


def test_trees_are_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = TreeBuilder()
    builder.file("a", b"a")
    tree = builder.build()
    store = TreeStore(tmp_path)
    store.keep(tree.digest, bytes(tree.raw))
    for number in (errno.EROFS, errno.EACCES, errno.EPERM):

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "utime", refuse)
        found = store.load(tree.digest)
        assert found is not None
        found.close()
