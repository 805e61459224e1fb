"""A service for each test module, and a client that talks plain HTTP to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two workers."""
    with running_service(tmp_path_factory.mktemp("service") / "data", "--workers", "2") as running:
        yield running


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """A client of it. It follows no redirects and retries nothing."""
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client
