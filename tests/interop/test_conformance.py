"""The distribution specification's own conformance program finds nothing to say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.conformance import ConformanceUnavailableError, conformance_program, run_conformance
from tests.support.server import running_service

if TYPE_CHECKING:
    from pathlib import Path

# What the specification lets a registry leave out, and pagepool does not.
_OPTIONAL = {
    "OCI_API_BLOBS_DIGEST_HEADER": "true",
    "OCI_API_MANIFESTS_DIGEST_HEADER": "true",
    "OCI_API_BLOBS_UPLOAD_CANCEL": "true",
}


@pytest.fixture(scope="module")
def program() -> Path:
    """The program, or skip."""
    try:
        return conformance_program()
    except ConformanceUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("version", "chunk_min_size"), [("1.0", "0"), ("1.1", "0"), ("1.1", "1MiB"), ("dev", "0")])
def test_conformance(program: Path, tmp_path: Path, version: str, chunk_min_size: str) -> None:
    """No test fails, and none is skipped but what the version leaves out."""
    environment = {"PAGEPOOL_CHUNK_MIN_SIZE": chunk_min_size}
    with running_service(tmp_path / "data", "--workers", "2", **environment) as service:
        outcome = run_conformance(program, service.host, tmp_path, OCI_VERSION=version, **_OPTIONAL)
        assert not service.faults()
    print(f"conformance {version}: {outcome.summary}")
    assert outcome.counts["FAIL"] == outcome.counts["Error"] == 0, outcome.failures
    assert outcome.counts["Skip"] == 0, outcome.failures
    assert outcome.counts["Pass"] > 500
