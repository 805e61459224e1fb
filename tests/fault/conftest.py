"""A service, and a node of a test's own, for tests that do something to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pagepool.node.worker import WorkerOptions
from tests.support.nodeserver import running_node
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pagepool.node.client import NodeClient

QUICK = WorkerOptions(timeout_s=3.0, fill=False, profiles=False, large=1 << 20)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "data", "--workers", "1") as running:
        yield running


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeClient]:
    with running_node(tmp_path, QUICK) as running:
        yield running
