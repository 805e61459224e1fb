"""What holds for every test.

In CI a test that is skipped has failed, unless its reason is known and accepted. And what tests start can be
interrupted, and what they make can be read by other users, however the tests themselves were started.
"""

from __future__ import annotations

import compileall
import gc
import os
import re
import signal
from collections.abc import Generator
from typing import TypeVar

import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from hypothesis import settings

_Report = TypeVar("_Report", pytest.TestReport, pytest.CollectReport)

NO_SKIP = "PAGEPOOL_NO_SKIP"
"""Set in CI to make skips failures."""

ACCEPTED = (
    # The conformance program is a Go module: it needs a newer Go than Debian 12 has, and the Go module proxy.
    re.compile(r"needs go: Go is not installed|needs Go 1\.24 or newer, and this is go\S+"),
    re.compile(r"needs go to reach its modules: .*", re.DOTALL),
    # Few distributions' kernels lack them, but those of virtual machines for tests do; the code around runs anyway.
    re.compile(r"this kernel has no fs-verity"),
    re.compile(r"this kernel has no project quotas \(CONFIG_(XFS_QUOTA, CONFIG_)?QFMT_V2\)"),
    # Rust programs that no distribution packages: `.ci/run` has cargo install them, where that is there and can.
    re.compile(r"needs cargo: cargo install (pjdfstest@0\.2\.2|fsx@0\.3\.2)"),
    # Go programs that no distribution packages, and that `go install` does not build: releases are binaries.
    re.compile(r"needs stargz-snapshotter, of which no distribution has a package"),
    # The reference registry cannot do it, so there is nothing to compare with.
    re.compile(r"docker-registry [0-9.]+ does not take SHA-512"),
)
"""Reasons that are fine in CI, too, each as a whole; everything else that tests need is installed by `.ci/run`."""


LONGEST_FIRST = (
    "tests/e2e",
    "tests/fault",
    "tests/demo",
    "tests/service/test_fuzz_api.py",
    "tests/interop",
    "tests/repair",
)
"""Where a file of tests takes a minute or more: begun last, one of them would go on when all others are done."""


# A machine that is busy with something else is no failure: an example may take as long as a test may.
settings.register_profile("pagepool", settings.default, deadline=None)
settings.load_profile("pagepool")


# Nor is a service whose disk is busy: httpx waits for 5 s, where nothing else is said, and no test means that.
DEFAULT_TIMEOUT_CONFIG.connect = DEFAULT_TIMEOUT_CONFIG.read = DEFAULT_TIMEOUT_CONFIG.write = 60.0


def pytest_configure(config: pytest.Config) -> None:
    """Give programs that tests start the signals that a shell's `&` or nohup made this one ignore, and a usual umask.

    Ignored signals are inherited, handlers are not: with one that does nothing it is still ignored here. And programs
    find bytecode, as those of an installed package do, also where Python is told to write none: there are thousands.
    """
    if not hasattr(config, "workerinput"):
        for packages in ("client", "service"):
            compileall.compile_dir(config.rootpath / packages, quiet=2)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    # Other users have to reach what tests make for them.
    os.umask(0o022)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Several processes begin with the files that take long."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(LONGEST_FIRST))


def pytest_collection_finish() -> None:
    """Keep thousands of tests out of each search for garbage in cycles from here on."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test into a failure."""
    report = yield
    return _judge(report) if call.excinfo is not None and not hasattr(report, "wasxfail") else report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole module into a failure."""
    report = yield
    return _judge(report)


def is_accepted(reason: str) -> bool:
    """Whether a test may be skipped in CI for this reason."""
    return any(pattern.fullmatch(reason.removeprefix("Skipped: ")) for pattern in ACCEPTED)


def _judge(report: _Report) -> _Report:
    if not os.environ.get(NO_SKIP) or report.outcome != "skipped":
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not is_accepted(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped, but {NO_SKIP} is set: {reason}"
    return report
