"""Real registries to test against: Debian's docker-registry, and pagepool's own service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pagepool.transport import RegistryClient, Session
from tests.support.server import running_service
from tests.transport.peer import docker_registry


@pytest.fixture(scope="module", params=["docker-registry", "pagepool"])
def registry_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry of each kind."""
    directory = tmp_path_factory.mktemp("registry")
    if request.param == "docker-registry":
        with docker_registry(directory) as peer:
            yield peer.url
    else:
        with running_service(directory / "data") as service:
            yield service.url


@pytest.fixture
def registry(registry_url: str) -> Iterator[RegistryClient]:
    """A client of a registry of each kind."""
    with Session(registry_url) as session:
        yield RegistryClient(session)
