"""fsspec's own tests of file systems (`fsspec.tests.abstract`) on an overlay: copy, get, put, pipe, open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fsspec.tests import abstract

from pagepool.fsspec import PagepoolFileSystem
from pagepool.layout import plan_copy, run_copy
from pagepool.oci import Reference
from pagepool.transport import RegistryClient, RegistrySink, Session
from tests.oci.samples import Sample
from tests.overlay.layers import whole_layer
from tests.support.server import running_service
from tests.support.trees import TreeBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PagepoolFileSystem]:
    """An overlay over an image with a directory for the tests. They want parents that are missing to be made."""
    builder = TreeBuilder()
    builder.directory("srv")
    sample = Sample()
    sample.add_image([whole_layer(builder.file_system())])
    here = tmp_path_factory.mktemp("fsspec")
    with running_service(here / "data") as service:
        with Session(service.url) as session:
            run_copy(plan_copy(sample), sample, RegistrySink(RegistryClient(session), Reference.parse("app:1")))
        found = PagepoolFileSystem(
            "app:1", service.url, upper=here / "upper", directory=here / "client", auto_mkdir=True
        )
        yield found
        found.close()


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc] # fsspec has no types
    """What fsspec's tests ask for."""

    @pytest.fixture
    def fs(self, overlay: PagepoolFileSystem) -> PagepoolFileSystem:
        """The file system."""
        return overlay

    @pytest.fixture
    def fs_path(self) -> str:
        """Where in it."""
        return "/srv"


class TestCopy(abstract.AbstractCopyTests, Fixtures):  # type: ignore[misc]
    """Copies in the file system."""


class TestGet(abstract.AbstractGetTests, Fixtures):  # type: ignore[misc]
    """Copies out of it."""


class TestPut(abstract.AbstractPutTests, Fixtures):  # type: ignore[misc]
    """Copies into it."""


class TestPipe(abstract.AbstractPipeTests, Fixtures):  # type: ignore[misc]
    """Whole files."""


class TestOpen(abstract.AbstractOpenTests, Fixtures):  # type: ignore[misc]
    """Exclusive creation."""
