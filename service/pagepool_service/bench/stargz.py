"""eStargz by containerd and stargz-snapshotter, as `bench mount` measures it: lazily pulled, as pagepool's images are.

Its images were converted before, in one of two ways (`estargz`). Configured as it comes; the registry's plain HTTP
apart. The command that is timed is the two of its documentation, one after the other: `rpull`, then `run`.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from pagepool_service.bench.containerd import CLIENT, DAEMON, Containerd, Proxy
from pagepool_service.bench.installed import missing_tools
from pagepool_service.bench.origins import HOST
from pagepool_service.bench.servers import PEER
from pagepool_service.bench.subjects import first_output_s

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pagepool_service.bench.link import Link

STARGZ: Final = "stargz-snapshotter"
"""The kind, as PAGEPOOL and PEER are. Its images come from PEER."""
LAZY_CLIENT: Final = "ctr-remote"
"""`ctr` with commands for eStargz; the others are not always those of another version of containerd."""

_SNAPSHOTTER: Final = "containerd-stargz-grpc"
_NAME: Final = "stargz"
_CONFIGURATION: Final = """\
[[resolver.host."{host}".mirrors]]
  host = "{host}"
  insecure = true
"""

_RELEASE: Final = "a release of github.com/containerd/stargz-snapshotter"
TOOLS: Final[Mapping[str, str]] = {
    DAEMON: f"apt-get install {DAEMON}",
    _SNAPSHOTTER: _RELEASE,
    LAZY_CLIENT: _RELEASE,
    "runc": "apt-get install runc",
    PEER: f"apt-get install {PEER}",
}
"""Program -> how to get it."""


class Stargz:
    """Implements `Starter`.

    Args:
        link: at whose client's end it runs.
        directory: for its state, short; made and removed here.
        environment: of its processes.
    """

    name = "eStargz, stargz-snapshotter"

    def __init__(self, link: Link, directory: Path, environment: Mapping[str, str], _: Sequence[str] = ()) -> None:
        self._environment = environment
        self._engine = Containerd(directory, environment, link.client, proxy=Proxy(_NAME, _prepare))

    def start(self) -> None:
        """See `Starter`. Its daemons are running, as pagepool's node is."""
        self.stop()
        self._engine.start()

    def run(self, image: str, command: Sequence[str]) -> float:
        """See `Starter`."""
        reference = f"{HOST}/{image}:latest"
        pull = self._engine.command(LAZY_CLIENT, "images", "rpull", "--plain-http", reference)
        # A filter of system calls, and no network, as the others have by themselves.
        options = ("--rm", "--seccomp", "--snapshotter", _NAME)
        start = self._engine.command(CLIENT, "run", *options, reference, "container", *command)
        return first_output_s(
            ["sh", "-c", f"{shlex.join(pull)} >/dev/null && exec {shlex.join(start)}"], self._environment
        )

    def stop(self) -> None:
        """See `Starter`."""
        self._engine.stop()


def _prepare(directory: Path) -> str:
    configuration = directory / "stargz.toml"
    configuration.write_text(_CONFIGURATION.format(host=HOST))
    options = ["--address", str(directory / _NAME), "--root", str(directory / "lazy")]
    return shlex.join([_SNAPSHOTTER, *options, "--config", str(configuration)])


def stargz_missing() -> list[str]:
    """Which of its programs are not there, each with how to get it."""
    return missing_tools(TOOLS)
