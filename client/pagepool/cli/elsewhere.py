"""What users of docker and podman look for here, and do not find: what there is instead. Loaded when that happens."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NO_PORTS: Final = "it is -p HOST:CONTAINER, for each port"
_NAMESPACES: Final = "each container has namespaces of its own, but for the network (--network)"
_NO_MORE: Final = "there is no more than --cap-add gives"
_LOGS: Final = "pagepool logs shows the last of it, and --log FILE keeps all"
_GONE: Final = "a container that has ended is not started again; pagepool run makes a new one"
_BUILD: Final = (
    "buildah, docker and podman build images; pagepool run --upper and commit make one of what a program wrote"
)
_LIST: Final = "it is images, inspect, rm, push or pull"

OPTIONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("-P", "--publish-all", "--expose"), _NO_PORTS),
    "--link": "containers of one network reach each other by their addresses",
    **dict.fromkeys(("--pid", "--ipc", "--uts", "--userns", "--cgroupns"), _NAMESPACES),
    "--gpus": "it is --device /dev/..., for each device, and -v for the libraries of the driver",
    "--privileged": _NO_MORE,
    **dict.fromkeys(("--log-driver", "--log-opt"), _LOGS),
    **dict.fromkeys(
        ("--dns", "--dns-search"), "name servers are the machine's or the network's; --add-host adds names"
    ),
    "--memory-swap": "--memory is with swap",
    **dict.fromkeys(("-c", "--cpu-shares", "--cpu-quota", "--cpuset-cpus"), "it is --cpus N"),
    "--pull": "a tag is looked up at the service each time",
    "--restart": "nothing starts a container again; a supervisor such as systemd can run pagepool run",
    "--storage-opt": "it is --quota SIZE",
    "--volumes-from": "it is -v SRC:DST, for each container",
}
"""By option of `run` and `exec`."""

LOAD_OPTIONS: Final[Mapping[str, str]] = dict.fromkeys(
    ("-i", "--input"), "this is a load test; pagepool push FILE REF pushes an image file"
)
"""By option of `load`."""

LIST_OPTIONS: Final[Mapping[str, str]] = dict.fromkeys(("--format", "--no-trunc"), "--json prints all of it")
LISTS: Final = ("images", "inspect", "mounts", "ps", "stats", "tags", "version")
"""Commands for which these are known elsewhere."""

COMMANDS: Final[Mapping[str, str]] = {
    "attach": "it is pagepool logs --follow, or exec",
    "build": _BUILD,
    **dict.fromkeys(("create", "restart", "start"), _GONE),
    "check": "it is pagepool fsck",
    "help": "it is pagepool --help, or --help behind a command",
    "history": "pagepool inspect shows the layers",
    "image": _LIST,
    "import": "it is pagepool push FILE REF",
    "init": "pagepool serve makes a store where there is none",
    "info": "it is pagepool node, stats or version",
    "kill": "it is pagepool stop --time 0",
    "network": "networks are files in /etc/cni/net.d, for run --network",
    "port": "pagepool ps --json shows the ports",
    "prune": "what nothing needs goes by itself (pagepool gc); pagepool container prune is for containers",
    "rmi": "it is pagepool rm REF",
    "save": "it is pagepool pull REF FILE",
    "search": "pagepool images lists all, and find looks for files in one",
    "snapshots": "it is pagepool backup --list",
    "system": "it is pagepool stats, cache or gc",
    "top": "it is pagepool ps, or exec",
    "unmount": "it is pagepool umount",
    "volume": "a volume is a directory: run -v SRC:DST",
}
"""By command."""

_SAME: Final = ("commit", "cp", "diff", "exec", "logs", "run", "stop", "wait")
CONTAINER_COMMANDS: Final[Mapping[str, str]] = {
    **{name: COMMANDS[name] for name in ("attach", "create", "kill", "port", "restart", "start", "top")},
    **{name: f"it is pagepool {name}" for name in _SAME},
    **dict.fromkeys(("list", "ls", "ps"), "it is pagepool ps"),
    "inspect": "it is pagepool ps --all --json",
    "stats": "it is pagepool memory",
}
"""By command of `container`."""


def unknown_option(error: click.NoSuchOption, instead: Mapping[str, str]) -> click.NoSuchOption:
    """The error of an option that there is not, with what there is instead, if that is known."""
    hint = instead.get(error.option_name)
    if hint is None:
        return error
    return click.NoSuchOption(error.option_name, f"No such option {error.option_name!r}: {hint}", ctx=error.ctx)


def unknown_command(name: str, names: Iterable[str], group: str = "") -> str:
    """What is said of a command that there is not.

    Args:
        names: of those that there are.
        group: what it would be a command of.
    """
    close = get_close_matches(name, names, 1)
    known = CONTAINER_COMMANDS if group == "container" else COMMANDS
    hint = known.get(name) or (f"did you mean {close[0]}?" if close else "")
    return f"No such command {name!r}" + (f": {hint}" if hint else "")
