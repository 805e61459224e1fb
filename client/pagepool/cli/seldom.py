"""Options of ``pagepool run`` that few use: loaded where there are any."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import TYPE_CHECKING

from pagepool.container import written
from pagepool.container.options import Tmpfs, Volume, parse_size

if TYPE_CHECKING:
    from pagepool.cli.running import RunGiven
    from pagepool.container import RunOptions


def add_seldom(options: RunOptions, given: RunGiven) -> RunOptions:
    """Add what these options say.

    Raises:
        OptionInvalidError: one that cannot be used.
    """
    mounts = [written.parse_mount(text) for text in given["mounts"]]
    tmpfs = [written.parse_tmpfs(text) for text in given["tmpfs"]]
    number = given["stop_signal"]
    no_new_privileges, seccomp = written.parse_security(given["security_opt"])
    return replace(
        options,
        volumes=(*options.volumes, *(one for one in mounts if isinstance(one, Volume))),
        tmpfs=(*tmpfs, *(one for one in mounts if isinstance(one, Tmpfs))),
        labels=tuple(written.parse_label(text) for text in given["labels"]),
        add_hosts=tuple(written.parse_add_host(text) for text in given["add_hosts"]),
        shm_size=options.shm_size if given["shm_size"] is None else parse_size(given["shm_size"]),
        devices=tuple(device for text in given["devices"] for device in written.parse_device(text)),
        cpus=None if given["cpus"] is None else written.parse_cpus(given["cpus"]),
        ulimits=tuple(written.parse_ulimit(text) for text in given["ulimits"]),
        cap_add=tuple(written.parse_capability(text, add=True) for text in given["cap_add"]),
        cap_drop=tuple(written.parse_capability(text, add=False) for text in given["cap_drop"]),
        no_new_privileges=no_new_privileges,
        seccomp=seccomp,
        ports=tuple(port for text in given["publish"] for port in written.parse_publish(text)),
        group_add=given["group_add"],
        stop_signal=None if number is None else _name(number),
        stop_timeout_s=given["stop_timeout"],
    )


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
