"""The registries that the contract is held against: pagepool's service, and Docker's registry as the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.auth.conftest import basic, write_users
from tests.support.server import running_service
from tests.transport.peer import docker_registry

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=["pagepool", "pagepool-users", "docker-registry"])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of one of them."""
    directory = tmp_path_factory.mktemp("registry")
    if request.param == "pagepool-users":  # who may do everything finds all as it is without users
        users = write_users(directory / "users")
        with (
            running_service(directory / "data", "--workers", "2", "--htpasswd", str(users)) as service,
            httpx.Client(base_url=service.url, auth=basic("alice")) as http,
        ):
            yield http
        return
    if request.param == "pagepool":
        with (
            running_service(directory / "data", "--workers", "2") as service,
            httpx.Client(base_url=service.url) as http,
        ):
            yield http
        return
    with docker_registry(directory) as peer, httpx.Client(base_url=peer.url) as http:
        yield http
