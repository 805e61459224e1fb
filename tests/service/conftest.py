"""A service for each test module, and a client that talks plain HTTP to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from pagepool.container.cgroup import remove_groups
from tests.support.server import Service, running_service

if TYPE_CHECKING:
    from collections.abc import Iterator

_GROUP = Path("/proc/self/cgroup")


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


@pytest.fixture
def limited() -> Iterator[Path]:
    """A control group below this process's own, which may have 256 MiB of memory."""
    own = {kinds: path for _, kinds, path in (line.split(":", 2) for line in _GROUP.read_text().splitlines())}
    first = Path("/sys/fs/cgroup/memory", own.get("memory", "/").lstrip("/"))
    top, name = (first, "memory.limit_in_bytes") if first.is_dir() else (Path("/sys/fs/cgroup"), "memory.max")
    group = top / f"pagepool-test-{os.getpid()}"
    try:
        group.mkdir()
        group.joinpath(name).write_text(str(256 << 20))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no control group can have a limit of memory here: {error}")
    try:
        yield group
    finally:
        remove_groups([group])
