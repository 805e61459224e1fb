"""`pagepool run` and `ps` as a program, on roots that a test has made: no node, no service.

Arguments: a JSON object {"root": …, "directory": …, "prefix": of ids, "config": {…}, "resizes": …}, then pagepool's.
``config`` is the ``config`` object of an image configuration; without ``resizes`` terminals keep the size that they
begin with.
"""

from __future__ import annotations

import json
import secrets
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagepool.cli import app, roots
from pagepool.container import terminal
from pagepool.container.records import DEAD, list_containers
from pagepool.errors import BusyError
from pagepool.oci.config import parse_config
from pagepool.oci.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pagepool.oci import Config


def make_config(run: Mapping[str, Any]) -> Config:
    """An image configuration that says what to run."""
    architecture = Platform.local().architecture
    document = {
        "architecture": architecture,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": []},
        "config": run,
    }
    return parse_config(json.dumps(document).encode())


class GivenRoot:
    """A root that is there already, and stays."""

    def __init__(self, path: Path, run: Mapping[str, Any], prefix: str, directory: Path) -> None:
        self._path = path
        self._directory = directory
        self._prefix = prefix
        self._config = make_config(run)

    @contextmanager
    def open_root(self, request: roots.RootRequest) -> Iterator[roots.Root]:
        """See `RootProvider`. An upper counts as that of every container that was killed."""
        if request.upper is not None and any(one.status == DEAD for one in list_containers(self._directory)):
            raise BusyError(f"{request.upper} is in use")
        yield roots.Root(self._path, self._config, f"{self._prefix}{secrets.token_hex(8)}", str(request.reference))

    def discard(self, container_id: str, path: Path) -> None:
        """See `RootProvider`."""


def main() -> int:
    """Run a command of pagepool."""
    given = json.loads(sys.argv[1])

    def provide(backend: str = "auto", upper: Path | None = None) -> roots.RootProvider:  # noqa: ARG001 - as that
        return GivenRoot(Path(given["root"]), given["config"], given["prefix"], Path(given["directory"]))

    if not given["resizes"]:
        terminal.copy_size = lambda source, target: None  # noqa: ARG005 - as the one that it stands for
    roots.default_provider = provide
    roots.containers_directory = lambda: Path(given["directory"])
    roots.ended_directory = lambda: Path(given["directory"]) / "ended"
    logs = Path(given["directory"]) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    roots.logs_directory = lambda: logs
    return app.run(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
