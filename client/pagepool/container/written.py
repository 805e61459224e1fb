"""Options of a container as docker's users write them, beyond those that `options` reads. Loaded if there are any."""

from __future__ import annotations

import csv
import ipaddress
import json
import os
import posixpath
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pagepool.container.defaults import CAPABILITIES, CAPABILITY_NUMBERS
from pagepool.container.options import (
    Device,
    OptionInvalidError,
    Port,
    Tmpfs,
    Ulimit,
    make_volume,
    parse_size,
    parse_volume,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pagepool.container.options import Volume

ULIMITS: Final = (
    *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue"),
    *("nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
)
_UNLIMITED: Final = (1 << 64) - 1
_MOST: Final = (1 << 63) - 1
_MORE: Final = ("CAP_IPC_LOCK", "CAP_NET_ADMIN", "CAP_SYS_NICE", "CAP_SYS_PTRACE")
"""What can be added to docker's fourteen: nothing that leads out of a container, or past its limits."""
_LEAST_CPUS: Final = 0.01
_MOST_PORT: Final = 65535
_FLAGS: Final = {"rw": "", "ro": "ro", "noexec": "noexec", "exec": "", "nosuid": "", "nodev": ""}
_BIND: Final = {"type", "source", "target", "readonly", "bind-propagation"}
_TMPFS: Final = {"type", "target", "tmpfs-size", "tmpfs-mode"}
_SAME: Final = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_EACH_HAS: Final = {"fd", "mqueue", "pts", "shm"}
"""In /dev: every container has its own."""
_AS_IT_IS: Final = ("apparmor=unconfined", "label=disable")
"""Of ``--security-opt``: there is nothing of the kind to be switched off."""


def parse_label(text: str) -> tuple[str, str]:
    """Parse ``KEY[=VALUE]``.

    Raises:
        OptionInvalidError: there is no key.
    """
    key, _, value = text.partition("=")
    if not key.strip():
        raise OptionInvalidError(text, "is no KEY=VALUE")
    return key, value


def parse_add_host(text: str) -> tuple[str, str]:
    """Parse ``NAME:IP``, or with = between: a name, and an address of either version.

    Raises:
        OptionInvalidError: it is something else; ``host-gateway``, say.
    """
    match = re.fullmatch(r"([^:=\s]+)[:=](.+)", text)
    if match is None:
        raise OptionInvalidError(text, "is no NAME:IP")
    try:
        return match[1], str(ipaddress.ip_address(match[2].removeprefix("[").removesuffix("]")))
    except ValueError as error:
        raise OptionInvalidError(text, f"{match[2]!r} is no address") from error


def parse_cpus(text: str) -> float:
    """Parse how many processors, with a fraction.

    Raises:
        OptionInvalidError: it is no such number.
    """
    if not re.fullmatch(r"\d{1,5}(\.\d+)?|\.\d+", text) or float(text) < _LEAST_CPUS:
        raise OptionInvalidError(text, f"is no number of processors: at least {_LEAST_CPUS}")
    return float(text)


def parse_device(text: str) -> tuple[Device, ...]:
    """Parse docker's ``--device``: ``SRC[:DST][:ACCESS]``. Of a directory it is each device below.

    Raises:
        OptionInvalidError: it is something else, or there is no such device.
    """
    source, *rest = text.split(":")
    access = rest.pop() if rest and not rest[-1].startswith("/") else "rwm"
    if not re.fullmatch(r"(?!.*(.).*\1)[rwm]{1,3}", access):
        raise OptionInvalidError(text, f"{access!r} is no access: of r, w, and m")
    place = rest.pop() if rest else source
    path = posixpath.normpath(place)
    if rest or not source.startswith("/") or not path.startswith("/dev/") or ".." in place.split("/"):
        raise OptionInvalidError(text, "is no SRC[:DST][:rwm] with SRC a path and DST one below /dev")
    try:
        found = list(_devices(source, path, access))
    except OSError as error:
        raise OptionInvalidError(text, f"{error.filename}: {error.strerror}") from error
    if not found:
        raise OptionInvalidError(text, "is no device, and there is none below it")
    return tuple(found)


def _devices(source: str, path: str, access: str) -> Iterator[Device]:
    status = os.stat(source)  # noqa: PTH116 - of what a link leads to, as docker has it
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        kind = "c" if stat.S_ISCHR(status.st_mode) else "b"
        numbers = os.major(status.st_rdev), os.minor(status.st_rdev)
        yield Device(path, kind, *numbers, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, access)
    elif stat.S_ISDIR(status.st_mode):
        for above, directories, names in os.walk(source):
            directories[:] = sorted(set(directories) - _EACH_HAS)
            for name in sorted(names):
                inner = f"{above}/{name}"
                if stat.S_IFMT(os.lstat(inner).st_mode) in (stat.S_IFCHR, stat.S_IFBLK):
                    yield from _devices(inner, posixpath.join(path, posixpath.relpath(inner, source)), access)


def parse_publish(text: str) -> tuple[Port, ...]:
    """Parse docker's ``--publish``: ``[[IP:]HOST:]CONTAINER[/tcp|udp|sctp]``; both may be ranges of the same length.

    Raises:
        OptionInvalidError: it is something else; a port without one of this machine, say.
    """
    match = re.fullmatch(r"(?:(?:(\[[0-9a-fA-F:.]+\]|[0-9.]+):)?([0-9-]*):)?([0-9-]+)(?:/(tcp|udp|sctp))?", text)
    if match is None:
        raise OptionInvalidError(text, "is no [IP:]HOST:CONTAINER[/tcp|udp|sctp]")
    address = (match[1] or "").strip("[]")
    try:
        address = str(ipaddress.ip_address(address)) if address else ""
    except ValueError as error:
        raise OptionInvalidError(text, f"{address!r} is no address") from error
    if not match[2]:
        raise OptionInvalidError(text, "say which port of this machine: HOST:CONTAINER")
    ours, theirs = _ports(text, match[2]), _ports(text, match[3])
    if len(ours) != len(theirs):
        raise OptionInvalidError(text, "there are as many ports on one side as on the other")
    return tuple(Port(one, other, match[4] or "tcp", address) for one, other in zip(ours, theirs, strict=True))


def _ports(text: str, words: str) -> range:
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", words)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= _MOST_PORT:
        raise OptionInvalidError(text, f"{words!r} is no port from 1 to {_MOST_PORT}, and no range of them")
    return range(first, last + 1)


def parse_ulimit(text: str) -> Ulimit:
    """Parse ``NAME=SOFT[:HARD]``; a limit is a number, or -1 or ``unlimited``.

    Raises:
        OptionInvalidError: there is no such limit, or the soft one is above the hard one.
    """
    match = re.fullmatch(r"(\w+)=(-1|unlimited|\d+)(?::(-1|unlimited|\d+))?", text)
    if match is None:
        raise OptionInvalidError(text, "is no NAME=SOFT[:HARD], such as nofile=1024:4096")
    if match[1] not in ULIMITS:
        raise OptionInvalidError(text, f"the limits are {', '.join(ULIMITS)}")
    soft, hard = (_limit(word) for word in (match[2], match[3] or match[2]))
    if soft > hard:
        raise OptionInvalidError(text, "the soft limit is above the hard one")
    return Ulimit(match[1], soft, hard)


def _limit(word: str) -> int:
    number = _UNLIMITED if word in ("-1", "unlimited") else int(word)
    if _MOST < number != _UNLIMITED:
        raise OptionInvalidError(word, "is no limit")
    return number


def parse_tmpfs(text: str) -> Tmpfs:
    """Parse ``DST[:OPTIONS]``: size=, mode=, uid=, gid=, ro, exec.

    Raises:
        OptionInvalidError: the destination is none, or an option is not known.
    """
    destination, _, rest = text.partition(":")
    flags, data = {"noexec"}, []
    for word in filter(None, rest.split(",")):
        name, _, value = word.partition("=")
        if name == "size":
            data.append(f"size={parse_size(value)}")
        elif re.fullmatch(r"mode=[0-7]{1,4}|[ug]id=[0-9]{1,9}", word):
            data.append(word)
        elif word in ("exec", "rw"):
            flags.discard("noexec" if word == "exec" else "ro")
        elif word in _FLAGS:
            flags |= {_FLAGS[word]} - {""}
        else:
            raise OptionInvalidError(text, f"{word!r} is not known: size=, mode=, uid=, gid=, ro, exec")
    if not any(word.startswith("mode=") for word in data):
        data.append("mode=1777")
    return Tmpfs(_destination(text, destination), ("nosuid", "nodev", *sorted(flags), *data))


def parse_mount(text: str) -> Volume | Tmpfs:
    """Parse docker's ``--mount``: ``type=bind,source=…,target=…[,readonly]``, or ``type=tmpfs,target=…``.

    Raises:
        OptionInvalidError: it is another type, or a key is missing or not known.
    """
    keys: dict[str, str] = {}
    try:
        (words,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError) as error:
        raise OptionInvalidError(text, "is no KEY=VALUE,...") from error
    for word in words:
        key, equals, value = word.partition("=")
        keys[_SAME.get(key, key)] = value if equals else "true"
    kind = keys.get("type", "volume")
    if kind not in ("bind", "tmpfs"):
        raise OptionInvalidError(text, f"the type is bind or tmpfs, not {kind}")
    unknown = keys.keys() - (_BIND if kind == "bind" else _TMPFS)
    if unknown:
        raise OptionInvalidError(text, f"{min(unknown)!r} is not known here")
    if kind == "tmpfs":
        size, mode = keys.get("tmpfs-size"), keys.get("tmpfs-mode")
        options = [f"size={size}"] if size else []
        options += [f"mode={mode}"] if mode else []
        return parse_tmpfs(f"{keys.get('target', '')}:{','.join(options)}")
    if keys.get("bind-propagation", "rprivate") != "rprivate":
        raise OptionInvalidError(text, "mounts are not propagated: rprivate")
    read_only = keys.get("readonly", "false")
    if read_only not in ("true", "false", "1", "0"):
        raise OptionInvalidError(text, "readonly is true or false")
    source, target = keys.get("source", ""), keys.get("target", "")
    if ":" in target:  # as in -v, where what follows is a mode
        raise OptionInvalidError(text, "there is a colon in the target")
    return make_volume(text, source, target, read_only=read_only in ("true", "1"))


def parse_capability(text: str, *, add: bool) -> str:
    """Parse a capability's name, with or without CAP_; ALL, if it is to be dropped.

    Raises:
        OptionInvalidError: there is none of that name, or it cannot be added.
    """
    name = text.upper()
    if name == "ALL" and not add:
        return name
    name = f"CAP_{name.removeprefix('CAP_')}"
    if add and name not in (*CAPABILITIES, *_MORE):
        more = ", ".join(one.removeprefix("CAP_") for one in _MORE)
        raise OptionInvalidError(text, f"what can be added is what can be dropped, and {more}")
    if name not in CAPABILITY_NUMBERS:
        raise OptionInvalidError(text, "a container has no such capability to be dropped")
    return name


def parse_security(texts: tuple[str, ...]) -> tuple[bool, dict[str, Any] | None]:
    """Parse docker's ``--security-opt``: ``no-new-privileges``, and ``seccomp=FILE``, ``unconfined`` or ``builtin``.

    Returns:
        whether there are to be no new privileges, and `RunOptions.seccomp`. The last of each counts.

    Raises:
        OptionInvalidError: it asks for something that there is not, or the file is no profile.
    """
    no_new_privileges, profile = False, None
    for text in texts:
        name, equals, value = _security_option(text)
        if name == "no-new-privileges" and value in ("", "true", "false"):
            no_new_privileges = value != "false"
        elif name == "seccomp" and value:
            profile = None if value == "builtin" else {} if value == "unconfined" else _read_profile(value)
        elif f"{name}{equals}{value}" not in _AS_IT_IS:
            raise OptionInvalidError(
                text, "what can be asked for is no-new-privileges, and seccomp=unconfined, builtin or a file's path"
            )
    return no_new_privileges, profile


def _security_option(text: str) -> tuple[str, str, str]:
    """Name, =, and value; docker takes a colon, too, as it was at first."""
    match = re.match(r"([a-z-]+)[=:]", text)
    return (match[1], "=", text[match.end() :]) if match else (text, "", "")


def _read_profile(path: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise OptionInvalidError(f"seccomp={path}", f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise OptionInvalidError(f"seccomp={path}", f"is no JSON: {error}") from error
    if not isinstance(found, dict) or "defaultAction" not in found:
        raise OptionInvalidError(f"seccomp={path}", "is no profile: a JSON object with a defaultAction")
    return found


def _destination(text: str, destination: str) -> str:
    try:
        return parse_volume(f"/:{destination}").destination
    except OptionInvalidError as error:
        raise OptionInvalidError(text, "an absolute path in the container, other than /, comes first") from error
