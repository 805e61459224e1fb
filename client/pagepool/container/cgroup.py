"""Limits of memory, processes and processors by control groups, of either version, where no other runtime keeps them.

A group is made only where there is a limit to keep, below the root of the hierarchy, by the name of the container.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pagepool.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path("/sys/fs/cgroup")
_KINDS: Final = ("memory", "pids", "cpu")
_MEMORY: Final = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
_GONE_S: Final = 5.0


def make_groups(resources: Mapping[str, Any], name: str) -> list[Path]:
    """Make the groups that keep these limits.

    Args:
        resources: ``linux.resources`` of runtime-spec.
        name: ``linux.cgroupsPath``.

    Returns:
        their directories. Nothing is left of them when this raises.

    Raises:
        UnsupportedError: the machine cannot keep a limit.
    """
    limits = {kind: resources[kind] for kind in _KINDS if kind in resources}
    made: list[Path] = []
    try:
        for kind, limit in limits.items():
            directory = _group(kind, name.lstrip("/"), made)
            for file, value in _settings(kind, limit, directory):
                (directory / file).write_text(value)
    except OSError as error:
        remove_groups(made)
        raise UnsupportedError(f"the limit of {kind} cannot be kept: {error}") from error
    return made


def join_groups(groups: list[Path]) -> None:
    """Put this process into groups."""
    for directory in groups:
        (directory / "cgroup.procs").write_text("0")


def join_groups_of(process: int, name: str) -> None:
    """Put this process into the groups that keep a container's limits, and as far as that can be into its others.

    Args:
        process: of the container, as a descriptor of it (pidfd).
        name: ``linux.cgroupsPath``.

    Raises:
        OSError: one that keeps a limit cannot be joined, or the process has ended.
    """
    unified = (ROOT / "cgroup.controllers").exists()
    mine = Path("/proc/self/cgroup").read_text().splitlines()
    for line in (line for line in _lines_of(process) if line not in mine):  # to change each takes the kernel long
        _, controllers, path = line.split(":", 2)
        kind = controllers.removeprefix("name=")
        if unified == (not kind):
            with contextlib.suppress(OSError):
                join_groups([ROOT / kind / path.lstrip("/")])
    join_groups(groups_of(name))


def _lines_of(process: int) -> list[str]:
    """What /proc says of a process's groups."""
    fields = Path(f"/proc/self/fdinfo/{process}").read_text().splitlines()
    pid = next(line.split()[1] for line in fields if line.startswith("Pid:"))
    try:
        return Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    finally:
        signal.pidfd_send_signal(process, 0)  # raises if it has ended: then the number may be another's


def groups_of(name: str) -> list[Path]:
    """Groups of that name which are there, whoever made them."""
    name = name.lstrip("/")
    return [path for path in (ROOT / name, *(ROOT / kind / name for kind in _KINDS)) if path.is_dir()]


def remove_groups(groups: list[Path]) -> None:
    """End what is left in groups, and remove them. Waits until what ended is gone."""
    deadline = time.monotonic() + _GONE_S
    for directory in groups:
        while True:
            with contextlib.suppress(OSError):
                _end_all(directory)
            try:
                directory.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    break
                time.sleep(0.005)  # the kernel tells nobody when a group is empty


def _end_all(directory: Path) -> None:
    for line in (directory / "cgroup.procs").read_text().splitlines():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line), signal.SIGKILL)


def _group(kind: str, name: str, made: list[Path]) -> Path:
    unified = (ROOT / "cgroup.controllers").exists()
    if unified:
        (ROOT / "cgroup.subtree_control").write_text(f"+{kind}")
    directory = ROOT / name if unified else ROOT / kind / name
    if directory not in made:
        directory.mkdir()
        made.append(directory)
    return directory


def _settings(kind: str, limit: Mapping[str, int], directory: Path) -> list[tuple[str, str]]:
    unified = (ROOT / "cgroup.controllers").exists()
    if kind == "cpu" and unified:
        return [("cpu.max", f"{limit['quota']} {limit['period']}")]
    if kind == "cpu":
        return [("cpu.cfs_period_us", str(limit["period"])), ("cpu.cfs_quota_us", str(limit["quota"]))]
    most = str(limit["limit"])
    if kind == "pids":
        return [("pids.max", most)]
    name, swap, no_swap = ("memory.max", "memory.swap.max", "0") if unified else (*_MEMORY, most)
    return [(name, most), *([(swap, no_swap)] if (directory / swap).exists() else [])]
