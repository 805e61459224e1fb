"""The official conformance program of the distribution specification: built once, run against a service.

It is a Go module, installed by the Go client at a pinned version into the user's cache directory. It talks to nothing
but the registry it is pointed at.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MODULE = "github.com/opencontainers/distribution-spec/conformance"
VERSION = "v0.0.0-20260831232431-97274622c111"
_OLDEST_GO = (1, 24)
_OFFLINE = re.compile(r"dial tcp|no such host|connection refused|proxyconnect|i/o timeout", re.IGNORECASE)
_COUNT = re.compile(r"^\s+(Pass|FAIL|Error|Skip|Disabled)\.*:\s+(\d+)$", re.MULTILINE)


class ConformanceUnavailableError(Exception):
    """The program cannot be had here; says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went: how many tests by result, and what was printed."""

    counts: Mapping[str, int]
    output: str

    @property
    def summary(self) -> str:
        """One line."""
        return ", ".join(f"{count} {name.lower()}" for name, count in self.counts.items())

    @property
    def failures(self) -> str:
        """What failed, with the reasons, each cut to a readable length."""
        lines = [line[:300] for line in self.output.splitlines()]
        return "\n".join(line for line in lines if not line.endswith(": Pass"))[:8000]


def conformance_program() -> Path:
    """The program, built if the cache does not have it.

    Raises:
        ConformanceUnavailableError: there is no Go, or too old a one, or its modules cannot be reached.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(home) if home else Path.home() / ".cache") / "pagepool" / "conformance" / VERSION
    program = cache / "conformance"
    if program.exists():
        return program
    go = _require_go()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as work:
        environment = {**os.environ, "GOBIN": work, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"}
        done = subprocess.run([go, "install", f"{MODULE}@{VERSION}"], env=environment, capture_output=True, text=True)
        if done.returncode and _OFFLINE.search(done.stderr):
            raise ConformanceUnavailableError(f"needs go to reach its modules: {done.stderr.strip()[-200:]}")
        if done.returncode:
            raise RuntimeError(f"go install failed:\n{done.stderr[-4000:]}")
        cache.mkdir(exist_ok=True)
        Path(work, "conformance").replace(program)
    return program


def run_conformance(program: Path, host: str, directory: Path, **options: str) -> Outcome:
    """Run every test against a registry without TLS.

    Args:
        host: ``127.0.0.1:port`` of the registry.
        directory: where its reports go.
        options: more of its variables.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OCI_")}
    environment |= {
        "OCI_REGISTRY": host,
        "OCI_TLS": "disabled",
        "OCI_RESULTS_DIR": str(directory / "results"),
        **options,
    }
    done = subprocess.run([program], env=environment, cwd=directory, capture_output=True, text=True, timeout=300)
    counts = {name: int(count) for name, count in _COUNT.findall(done.stdout)}
    return Outcome(counts, done.stdout + done.stderr)


def _require_go() -> str:
    go = shutil.which("go")
    if go is None:
        raise ConformanceUnavailableError("needs go: Go is not installed")
    said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout.strip()
    match = re.match(r"go(\d+)\.(\d+)", said)
    if match is None or (int(match[1]), int(match[2])) < _OLDEST_GO:
        raise ConformanceUnavailableError(f"needs Go 1.24 or newer, and this is {said}")
    return go
