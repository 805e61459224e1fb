"""`pagepool bench mount`: the phases, in order, and what they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pagepool_service.bench import mountcache, mountmany, mountstart, mountwarm, mountwrite, stargz
from pagepool_service.bench.installed import compile_client, missing_tools, require_tools
from pagepool_service.bench.servers import PAGEPOOL, PEER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pagepool_service.bench.lab import Lab
    from pagepool_service.bench.mountrows import Row

PHASES: Final[Mapping[str, Callable[[Lab], Iterator[Row]]]] = {
    mountstart.PHASE: mountstart.measure_start,
    mountcache.PHASE: mountcache.measure_cache,
    mountwarm.PHASE: mountwarm.measure_warm,
    mountwrite.PHASE: mountwrite.measure_write,
    mountmany.PHASE: mountmany.measure_many,
}
"""By name, in the order in which they are measured."""

_TOOLS: Final = {"ip": "iproute2", "nsenter": "util-linux", "skopeo": "skopeo"}
_PEER_TOOLS: Final = {"podman": "podman", "runc": "runc", PEER: PEER}


@dataclass(frozen=True, slots=True)
class MountFigures:
    """All that was measured, in order."""

    rows: Sequence[Row]

    def as_json(self) -> list[dict[str, Any]]:
        """For `--json`."""
        return [one.as_json() for one in self.rows]


def measure_mounts(lab: Lab, phases: Sequence[str]) -> MountFigures:
    """Measure. Takes many minutes, some GB of disk, and root; drops the machine's caches again and again.

    Raises:
        UnsupportedError: something is missing on this machine.
        PagepoolError: a step failed. Nothing is left behind.
    """
    check_tools(lab.kinds, lazy=lab.lazy)
    compile_client()
    rows: list[Row] = []
    for phase in PHASES:
        if phase in phases:
            lab.say(f"measuring: {phase}")
            rows += PHASES[phase](lab)
    return MountFigures(rows)


def check_tools(kinds: Sequence[str], *, lazy: bool = False) -> None:
    """See what there is.

    Raises:
        UnsupportedError: something is missing; the message names all of it.
    """
    packages = _TOOLS | (_PEER_TOOLS if PEER in kinds else {})
    wanted = {tool: f"apt-get install {package}" for tool, package in packages.items()}
    if lazy:
        wanted.update(stargz.TOOLS)
    require_tools("bench mount", wanted)


def peer_tools_installed() -> bool:
    """Whether podman and docker-registry are there."""
    return not missing_tools(_PEER_TOOLS)


def kinds_of(ours: bool, peer: bool) -> list[str]:
    """Which kinds are measured."""
    return [*([PAGEPOOL] if ours else []), *([PEER] if peer else [])]
