"""From an image's configuration and a user's options to what a runtime is to do: `plan_runtime`.

The result is a ``config.json`` of runtime-spec v1.0.2, as runc 1.1 takes it; our own runtime
(`pagepool.container.own`) takes the same. Rules and defaults are docker's, with these differences: there is no AppArmor
or SELinux profile, and the image's Volumes are directories that are there, no more: what is written there is the
container's own as everything else.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pagepool.container import defaults
from pagepool.container.options import HOST, OptionInvalidError
from pagepool.container.syscalls import default_profile, resolve_profile
from pagepool.container.users import User, find_group, find_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pagepool.container.options import Container, Device, RunOptions, Volume
    from pagepool.oci.config import RunConfig

SPEC_VERSION: Final = "1.0.2"
STOP_SIGNAL: Final = "org.opencontainers.image.stopSignal"
"""The annotation that has it, as image-spec's `conversion.md` names it."""
HOME: Final = "pagepool.home"
"""The annotation that says whether $HOME is the user's own: "user", else nothing."""

_PERIOD_US: Final = 100_000
"""How often the share of the processors is given out, as docker has it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a plan depends on, beside image and options.

    Args:
        passwd: the image's /etc/passwd.
        group: its /etc/group.
        hostname: the host's.
        files: what is mounted over files of the container: path in it -> file of the host, /etc/hosts for one.
        cgroup: whether control groups can be shown in it.
        cgroup_namespace: whether it gets a namespace of control groups: where all are of version 2, as docker has it.
        deep_read_only: whether mounts can be made read-only with all below them (Linux 5.12).
        machine: its architecture, as uname(2) has it.
        kernel: its major and minor version.
        network: a path of the namespace of its network, where that has a name.
    """

    passwd: bytes = b""
    group: bytes = b""
    hostname: str = "localhost"
    files: Mapping[str, str] = field(default_factory=dict, hash=False)
    cgroup: bool = True
    cgroup_namespace: bool = False
    deep_read_only: bool = True
    machine: str = "x86_64"
    kernel: tuple[int, int] = (6, 5)
    network: str = ""


def plan_runtime(container: Container, facts: Facts) -> dict[str, Any]:
    """The configuration to run a container by. Pure.

    Raises:
        OptionInvalidError: there is no command to run, or the profile of system calls is none.
        UserInvalidError: the image does not have the user.
    """
    run, options = container.config.run, container.options
    user = find_user(options.user or run.user, facts.passwd, facts.group)
    groups = dict.fromkeys((*user.groups, *(find_group(name, facts.group) for name in options.group_add)))
    hostname = plan_hostname(container, facts)
    arguments = plan_arguments(run, options)
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": options.tty,
            "user": {"uid": user.uid, "gid": user.gid, "umask": 0o022, "additionalGids": list(groups)},
            "args": arguments,
            "env": plan_environment(run, options, hostname, user.home),
            "cwd": _workdir(run, options),
            "capabilities": _capabilities(user, options),
            "noNewPrivileges": options.no_new_privileges,
            "rlimits": [
                {"type": f"RLIMIT_{one.name.upper()}", "soft": one.soft, "hard": one.hard} for one in options.ulimits
            ],
        },
        "root": {"path": str(container.root), "readonly": options.read_only},
        "hostname": hostname,
        "mounts": _mounts(options, facts),
        "annotations": {
            STOP_SIGNAL: options.stop_signal or run.stop_signal or "SIGTERM",
            HOME: "" if _says_home(run, options) else "user",
        },
        "linux": {
            "cgroupsPath": f"/pagepool-{container.id}",
            "devices": [_device(one) for one in {one.path: one for one in options.devices}.values()],
            "resources": _resources(options),
            "namespaces": list(_namespaces(options, facts)),
            "maskedPaths": list(defaults.MASKED_PATHS),
            "readonlyPaths": list(defaults.READONLY_PATHS),
            **_seccomp(options, facts),
        },
    }


def plan_arguments(run: RunConfig, options: RunOptions) -> list[str]:
    """The program and its arguments.

    Raises:
        OptionInvalidError: there is none.
    """
    if options.entrypoint is None:
        # An empty one is how an image says that it has not that of the image below.
        entrypoint = () if run.entrypoint == ("",) else run.entrypoint
        arguments = [*entrypoint, *(options.command or run.cmd)]
    else:
        # The image's Cmd were the arguments of another program.
        arguments = [*([options.entrypoint] if options.entrypoint else []), *options.command]
    if not arguments or not arguments[0]:
        raise OptionInvalidError("", "the image has no command of its own: say what is to be run")
    return arguments


def plan_environment(run: RunConfig, options: RunOptions, hostname: str, home: str) -> list[str]:
    """``NAME=value`` of the program: our defaults, then the image's, then the user's; each name once."""
    values = {"PATH": defaults.PATH, "HOSTNAME": hostname}
    if options.tty:
        values["TERM"] = "xterm"
    for text in (*run.env, *options.env):
        name, equals, value = text.partition("=")
        if equals:
            values[name] = value
        else:
            values.pop(name, None)
    if not values.get("HOME"):
        values["HOME"] = home
    return [f"{name}={value}" for name, value in values.items()]


def plan_hostname(container: Container, facts: Facts) -> str:
    """What the container calls itself."""
    options = container.options
    return options.hostname or (facts.hostname if options.network == HOST else container.id[:12])


def _says_home(run: RunConfig, options: RunOptions) -> bool:
    said = dict(text.partition("=")[::2] for text in (*run.env, *options.env))
    return bool(said.get("HOME"))


def _workdir(run: RunConfig, options: RunOptions) -> str:
    # Without dots, as docker has it: what is missing of a path is made name by name.
    wanted = posixpath.normpath(f"/{options.workdir or run.working_dir}")
    return f"/{wanted.strip('/')}"


def _seccomp(options: RunOptions, facts: Facts) -> dict[str, Any]:
    names = _capability_names(options)
    if options.seccomp is None:
        return {"seccomp": default_profile(names, facts.machine)}
    if not options.seccomp:
        return {}
    return {"seccomp": resolve_profile(options.seccomp, names, facts.machine, facts.kernel)}


def _capability_names(options: RunOptions) -> list[str]:
    kept = [] if "ALL" in options.cap_drop else [one for one in defaults.CAPABILITIES if one not in options.cap_drop]
    return list(dict.fromkeys((*kept, *options.cap_add)))


def _capabilities(user: User, options: RunOptions) -> dict[str, list[str]]:
    names = _capability_names(options)
    # Without effective ones for users, as execve has it: else a user could do what only root may.
    kinds = ("bounding", "effective", "permitted") if user.uid == 0 else ("bounding",)
    return {kind: list(names) for kind in kinds}


def _namespaces(options: RunOptions, facts: Facts) -> Iterable[dict[str, str]]:
    for kind in ("pid", "ipc", "uts", "mount"):
        yield {"type": kind}
    if facts.network:
        yield {"type": "network", "path": facts.network}
    elif options.network != HOST:
        yield {"type": "network"}
    if facts.cgroup_namespace:
        yield {"type": "cgroup"}


def _resources(options: RunOptions) -> dict[str, Any]:
    own = [
        {"allow": True, "type": one.kind, "major": one.major, "minor": one.minor, "access": one.access}
        for one in options.devices
    ]
    found: dict[str, Any] = {"devices": [*defaults.device_rules(), *own]}
    if options.memory is not None:
        found["memory"] = {"limit": options.memory, "swap": options.memory}
    if options.pids_limit is not None:
        found["pids"] = {"limit": options.pids_limit}
    if options.cpus is not None:
        found["cpu"] = {"quota": round(options.cpus * _PERIOD_US), "period": _PERIOD_US}
    return found


def _device(one: Device) -> dict[str, Any]:
    numbers = {"type": one.kind, "major": one.major, "minor": one.minor}
    return {"path": one.path, **numbers, "fileMode": one.mode, "uid": one.uid, "gid": one.gid}


def _mounts(options: RunOptions, facts: Facts) -> list[dict[str, Any]]:
    """Ours, the files that docker brings along, and the user's, which replace ours at the same place."""
    wanted = [_volume(volume, facts) for volume in options.volumes]
    wanted += [
        {"destination": one.destination, "type": "tmpfs", "source": "tmpfs", "options": list(one.options)}
        for one in options.tmpfs
    ]
    own = {mount["destination"].rstrip("/") for mount in wanted}
    found = [mount for mount in defaults.mounts(facts.cgroup, options.shm_size) if mount["destination"] not in own]
    files = [_bind(source, path, ["rbind", "rprivate"]) for path, source in facts.files.items() if path not in own]
    # What is above comes before what is below: a volume at /etc before the files in it.
    return found + sorted(files + wanted, key=lambda mount: mount["destination"].rstrip("/").count("/"))


def _volume(volume: Volume, facts: Facts) -> dict[str, Any]:
    read_only = [("rro" if facts.deep_read_only else "ro")] if volume.read_only else []
    return _bind(str(volume.source), volume.destination, ["rbind", "rprivate", *read_only])


def _bind(source: str, destination: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": options}
