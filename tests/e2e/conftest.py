"""Real images, and a service to push them to."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support import images as recipes
from tests.support import umoci
from tests.support.server import Service, running_service
from tests.support.slimming import share_slim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def images() -> dict[str, Path]:
    """The OCI layouts of the `ci` set, built unless they are cached."""
    return _build(recipes.SETS["ci"])


@pytest.fixture(scope="session")
def postgres() -> Path:
    """The OCI layout of a database, which only what runs it needs."""
    return _build(("postgres-new",))["postgres-new"]


@pytest.fixture(scope="session")
def redis() -> Path:
    """The OCI layout of another server, which only what runs it needs."""
    return _build(("redis-new",))["redis-new"]


@pytest.fixture(scope="session")
def slim(images: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The OCI layout of an image with fewer files, for what does not depend on how large an image is."""
    return share_slim(images["debian-new"], tmp_path_factory)


@pytest.fixture(scope="session")
def slim_old(images: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The OCI layout of nearly the same image as `slim`."""
    return share_slim(images["debian-old"], tmp_path_factory)


@pytest.fixture(scope="session")
def slim_nginx(images: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The OCI layout of an image on `slim`, the same base."""
    return share_slim(images["nginx-new"], tmp_path_factory)


def _build(names: tuple[str, ...]) -> dict[str, Path]:
    cache = recipes.default_cache_dir()
    missing = recipes.missing_tools()
    if missing and not all(recipes.is_current(name, cache) for name in names):
        pytest.skip(f"building images needs {', '.join(missing)}")
    return recipes.build(names, cache)


@pytest.fixture(scope="session")
def unpacked(
    images: dict[str, Path], slim: Path, slim_nginx: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[bytes, umoci.Row]]:
    """Tells what an image's root file system is, before it was pushed anywhere."""
    layouts = {**images, "slim": slim, "slim-nginx": slim_nginx}
    known: dict[str, dict[bytes, umoci.Row]] = {}

    def describe(name: str) -> dict[bytes, umoci.Row]:
        if name not in known:
            known[name] = umoci.unpack(layouts[name], "latest", tmp_path_factory.mktemp("unpacked"))
        return known[name]

    return describe


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two workers, for all tests of a file: what one has pushed, the next one need not."""
    directory = tmp_path_factory.mktemp("service")
    with running_service(directory / "data", "--workers", "2") as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    """A service with two workers and an empty store, to be counted, stopped and killed."""
    with running_service(tmp_path / "data", "--workers", "2") as running:
        yield running
