"""In CI a skipped test has failed, unless the reason is one of those that are known, as a whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import NO_SKIP, is_accepted

_ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "reason",
    [
        "needs go: Go is not installed",
        "needs Go 1.24 or newer, and this is go1.19.8",
        "needs go to reach its modules: dial tcp: lookup proxy.golang.org\nno such host",
        "this kernel has no fs-verity",
        "this kernel has no project quotas (CONFIG_XFS_QUOTA, CONFIG_QFMT_V2)",
        "this kernel has no project quotas (CONFIG_QFMT_V2)",
        "needs cargo: cargo install fsx@0.3.2",
        "docker-registry 2.8 does not take SHA-512",
        "needs stargz-snapshotter, of which no distribution has a package",
    ],
)
def test_what_ci_cannot_install_may_be_missing(reason: str) -> None:
    assert is_accepted(reason)
    assert is_accepted(f"Skipped: {reason}")


@pytest.mark.parametrize(
    "reason",
    [
        "needs umoci (apt-get install umoci)",
        "needs root: kernel mounts",
        "needs kernel mounts: this kernel has no fs-verity",
        "needs cargo: cargo install fsx@0.3.2, umoci",
        "needs docker-registry (apt-get install docker-registry)",
        "",
    ],
)
def test_everything_else_is_installed(reason: str) -> None:
    assert not is_accepted(reason)


def test_crates_are_those_that_ci_installs() -> None:
    """Their versions are in three places."""
    installed = set(re.findall(r"(?:pjdfstest|fsx)@[0-9.]+", (_ROOT / ".ci" / "run").read_text()))
    assert len(installed) == 2
    for crate in installed:
        assert is_accepted(f"needs cargo: cargo install {crate}")


def test_ci_asks_for_it() -> None:
    assert f"export {NO_SKIP}=1" in (_ROOT / ".ci" / "run").read_text()
