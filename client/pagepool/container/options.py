"""What a user says about a container to run, and how each option is written on a command line."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pagepool.container.defaults import SHM_SIZE
from pagepool.errors import InvalidError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pagepool.oci import Config

HOST: Final = "host"
NONE: Final = "none"
"""Networks that are no network of a container's own."""
BRIDGE: Final = "bridge"
"""The one that is there without being configured."""

# Compiled when they are used: most containers have no such option.
_SIZE: Final = r"([0-9]{1,20}(?:\.[0-9]{1,20})?)([bkmgt]?)b?"
_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MIN_MEMORY: Final = 6 << 20
_NAME: Final = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}"
_HOSTNAME: Final = r"\w[\w-]{0,62}(\.\w[\w-]{0,62})*"
_AS_IT_IS: Final = frozenset({"", "rw", "z", "Z", "rbind", "rprivate", "private", "cached", "delegated", "consistent"})
"""Modes of volumes that ask for what is so anyway; z and Z: no SELinux label keeps a container from anything."""


class OptionInvalidError(InvalidError):
    """An option of a container that cannot be used."""

    what = "option"


@dataclass(frozen=True, slots=True)
class Volume:
    """A file or directory of the host that a container sees.

    Args:
        source: on the host; absolute.
        destination: in the container; absolute.
        read_only: whether nothing below it can be written, mounts below it included.
    """

    source: Path
    destination: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A file system in memory that a container sees.

    Args:
        destination: in the container; absolute.
        options: of the mount, as runtime-spec has them.
    """

    destination: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Port:
    """A port of this machine that is a container's.

    Args:
        host: of this machine.
        container: of the container.
        protocol: tcp, udp or sctp.
        address: of this machine; "": all.
    """

    host: int
    container: int
    protocol: str = "tcp"
    address: str = ""

    def __str__(self) -> str:
        """As docker's ``ps`` has it."""
        address = f"[{self.address}]" if ":" in self.address else self.address or "0.0.0.0"
        return f"{address}:{self.host}->{self.container}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A limit of each process (setrlimit), by its name without RLIMIT_, in small letters."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the host that a container gets.

    Args:
        path: in the container, below /dev.
        kind: ``c`` or ``b``, of characters or of blocks.
        major, minor: its numbers.
        mode: its permissions.
        uid, gid: who has it.
        access: of ``r``, ``w``, and ``m`` (nodes of it may be made).
    """

    path: str
    kind: str
    major: int
    minor: int
    mode: int = 0o660
    uid: int = 0
    gid: int = 0
    access: str = "rwm"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run a container. What is not said is as the image says.

    Args:
        command: replaces the image's Cmd, if there is any of it.
        entrypoint: replaces the image's Entrypoint, and its Cmd with it; "" is none.
        env: ``NAME=value``, or ``NAME`` to have the image's variable removed. The last of a name counts.
        user: user, or user:group, by name or number; "" is as the image says.
        workdir: absolute, or ""; where the program starts.
        hostname: "" is the host's with its network, and else the first of the container's id.
        network: ``host``'s, ``none`` but loopback, or the name of one (`network`): ``bridge``, for one.
        ports: what is published, of a network that has a name.
        plugins: directories of what makes such networks; none: the usual ones.
        memory: the most memory it may use, swap included; None: no limit of its own.
        pids_limit: the most processes and threads; None: no limit of its own.
        read_only: whether its root cannot be written. Volumes and /dev/shm still can.
        tty: whether it gets a terminal.
        interactive: whether it gets our standard input; /dev/null otherwise.
        name: what it is called; "" is nothing.
        labels: free text by key, noted with the container; the last of a key counts.
        add_hosts: names and addresses for its /etc/hosts.
        tmpfs: what is mounted beside volumes.
        shm_size: of /dev/shm.
        devices: of the host's, beside those that every container has.
        cpus: the most processors that it may use at once; None: no limit of its own.
        ulimits: of its processes.
        cap_add, cap_drop: capabilities by name; ``ALL`` of them can be dropped.
        no_new_privileges: whether no program gets more rights than the one that executes it.
        group_add: more supplementary groups, by name or number.
        seccomp: which system calls its programs may make: a profile as docker has them, parsed. None: our own; an
            empty one: all.
        stop_signal: what asks it to end; None: as the image says.
        stop_timeout_s: after so long `stop_containers` kills it, unless told otherwise.
    """

    command: tuple[str, ...] = ()
    entrypoint: str | None = None
    env: tuple[str, ...] = ()
    user: str | None = None
    workdir: str | None = None
    hostname: str = ""
    network: str = HOST
    ports: tuple[Port, ...] = ()
    plugins: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    memory: int | None = None
    pids_limit: int | None = None
    read_only: bool = False
    tty: bool = False
    interactive: bool = False
    name: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    add_hosts: tuple[tuple[str, str], ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    shm_size: int = SHM_SIZE
    devices: tuple[Device, ...] = ()
    cpus: float | None = None
    ulimits: tuple[Ulimit, ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    no_new_privileges: bool = False
    group_add: tuple[str, ...] = ()
    seccomp: Mapping[str, Any] | None = field(default=None, hash=False)
    stop_signal: str | None = None
    stop_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """A container to run.

    Args:
        id: unique on this machine; letters, digits, ``_.-``.
        image: what people call the image.
        root: its root, mounted or unpacked. It has to be writable also for a read-only container: mount points that the
            image lacks are made in it. Only the program finds it read-only.
        config: the image's configuration.
    """

    id: str
    image: str
    root: Path
    config: Config
    options: RunOptions = RunOptions()


def parse_volume(text: str) -> Volume:
    """Parse ``SRC:DST[:ro]``. A relative source begins with a dot. Modes that change nothing here are taken.

    Raises:
        OptionInvalidError: it is something else; a named volume, say.
    """
    source, _, rest = text.partition(":")
    destination, _, mode = rest.partition(":")
    modes = set(mode.split(","))
    if modes - _AS_IT_IS - {"ro"} or {"ro", "rw"} <= modes:
        raise OptionInvalidError(text, f"the mode is ro or rw, not {mode!r}")
    return make_volume(text, source, destination, read_only="ro" in modes)


def make_volume(text: str, source: str, destination: str, *, read_only: bool) -> Volume:
    """What an option says of a volume.

    Args:
        text: the option.

    Raises:
        OptionInvalidError: a path is none.
    """
    if not source.startswith(("/", ".")):
        raise OptionInvalidError(text, "begins with no path (named volumes are not supported): SRC:DST[:ro]")
    if not destination.startswith("/") or destination.strip("/.") == "" or ".." in destination.split("/"):
        raise OptionInvalidError(text, "an absolute path in the container, other than /, has to follow: SRC:DST[:ro]")
    return Volume(Path(source).absolute(), f"/{posixpath.normpath(destination).strip('/')}", read_only)


def parse_memory(text: str) -> int:
    """Parse a size as docker's ``--memory``: bytes, or with b, k, m, g, powers of 1024.

    Raises:
        OptionInvalidError: it is none, or less than 6 MiB.
    """
    size = parse_size(text)
    if size < _MIN_MEMORY:
        raise OptionInvalidError(text, "is too little to start a program in: at least 6m")
    return size


def parse_size(text: str) -> int:
    """Parse a size: bytes, or with b, k, m, g, powers of 1024.

    Raises:
        OptionInvalidError: it is none, or nothing.
    """
    match = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size < 1:
        raise OptionInvalidError(text, "is no size such as 512m")
    return size


def parse_env(text: str, environ: Mapping[str, str]) -> str:
    """Parse ``NAME=value``, or ``NAME``: this process's own value, or that the image's be removed.

    Raises:
        OptionInvalidError: there is no name.
    """
    name, equals, _ = text.partition("=")
    if not name or "\0" in text:
        raise OptionInvalidError(text, "is no NAME=value")
    return text if equals or name not in environ else f"{name}={environ[name]}"


def parse_env_file(text: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Parse a file of variables: one in a line, nothing is quoted; lines that begin with # and empty ones are skipped.

    Raises:
        OptionInvalidError: a line that names no variable.
    """
    lines = (line.lstrip() for line in text.removeprefix("\ufeff").splitlines())
    kept = [line for line in lines if line and not line.startswith("#")]
    for line in kept:
        name = line.partition("=")[0]
        if any(letter.isspace() for letter in name):
            raise OptionInvalidError(line, "the name of a variable has a space in it")
    return tuple(parse_env(line, environ) for line in kept)


def check_options(options: RunOptions) -> None:
    """Refuse what cannot be run, whatever the image.

    Raises:
        OptionInvalidError: it names the option's value.
    """
    if options.name and not re.fullmatch(_NAME, options.name):
        raise OptionInvalidError(options.name, "a name has letters, digits and _.-")
    if options.hostname and (len(options.hostname) > 64 or not re.fullmatch(_HOSTNAME, options.hostname, re.ASCII)):
        raise OptionInvalidError(options.hostname, "is no name of a host")
    if not re.fullmatch(_NAME, options.network):
        raise OptionInvalidError(options.network, "is no name of a network")
    if options.ports and options.network in (HOST, NONE):
        raise OptionInvalidError(str(options.ports[0]), "ports are published of a network such as --network bridge")
    taken = [(port.host, port.protocol, port.address) for port in options.ports]
    if len(set(taken)) < len(taken):
        raise OptionInvalidError(str(options.ports[0]), "a port is published twice")
    if options.workdir and not options.workdir.startswith("/"):
        raise OptionInvalidError(options.workdir, "the working directory has to be absolute")
    if options.pids_limit is not None and options.pids_limit < 1:
        raise OptionInvalidError(options.pids_limit, "at least one process is needed")
    destinations = [one.destination.rstrip("/") for one in options.volumes]
    destinations += [one.destination.rstrip("/") for one in options.tmpfs]
    twice = next((one for one in destinations if destinations.count(one) > 1), None)
    if twice:
        raise OptionInvalidError(twice, "two volumes are mounted there")
    for volume in options.volumes:
        if not volume.source.exists():
            raise OptionInvalidError(str(volume.source), "is not on this machine")
