"""What `plan_runtime` needs to know of this machine and of a container's root, and the files that it mounts over."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.container.options import HOST
from pagepool.container.plan import Facts, plan_hostname
from pagepool.container.rootfiles import open_root, read_file

if TYPE_CHECKING:
    from pagepool.container.network import Attached
    from pagepool.container.options import Container, RunOptions

_CGROUPS: Final = Path("/sys/fs/cgroup")
_STUB: Final = "127.0.0.53"
"""The name server of systemd-resolved, which knows others."""
_LOOPBACK: Final = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def gather_facts(container: Container, directory: Path, attached: Attached | None = None) -> Facts:
    """Look at the machine and the root, and write the files that the container is to see into a directory.

    Args:
        attached: to what network, if that has a name.

    Raises:
        OSError: the root cannot be read, or the directory not written.
    """
    with open_root(container.root) as root:
        passwd, group = read_file(root, "/etc/passwd"), read_file(root, "/etc/group")
    facts = Facts(hostname=os.uname().nodename)
    hostname = plan_hostname(container, facts)
    texts = {
        "resolv.conf": _host("/etc/resolv.conf", "") if attached is None else _resolving(attached),
        "hosts": _hosts(container, hostname, attached),
        "hostname": f"{hostname}\n",
    }
    for name, text in texts.items():
        path = directory / name
        path.write_text(text, errors="surrogateescape")  # as it was read, and as it was given
        path.chmod(0o644)
    return Facts(
        passwd=passwd,
        group=group,
        hostname=facts.hostname,
        files={
            f"/etc/{name}": str(directory / name) for name in texts if _can_cover(f"/etc/{name}", container.options)
        },
        cgroup=_CGROUPS.is_dir() and any(_CGROUPS.iterdir()),
        cgroup_namespace=is_unified(),
        deep_read_only=_kernel() >= (5, 12),
        machine=os.uname().machine,
        kernel=_kernel(),
        network="" if attached is None else str(attached.namespace),
    )


def _can_cover(path: str, options: RunOptions) -> bool:
    """Whether there can be a file to mount over: not where a read-only volume, or a read-only tmpfs, has none."""
    volumes = {volume.destination.rstrip("/"): volume for volume in options.volumes}
    memory = {tmpfs.destination.rstrip("/"): tmpfs for tmpfs in options.tmpfs}
    nearest = max((place for place in (*volumes, *memory) if path.startswith(f"{place}/")), key=len, default="")
    if nearest in volumes:
        volume = volumes[nearest]
        return not volume.read_only or os.path.lexists(f"{volume.source}{path.removeprefix(nearest)}")
    return nearest not in memory or "ro" not in memory[nearest].options


def is_unified() -> bool:
    """Whether all control groups of this machine are of version 2."""
    return (_CGROUPS / "cgroup.controllers").exists()


def _resolving(attached: Attached) -> str:
    """The network's own name servers; or this machine's, but for those that only it can reach."""
    text = _host("/etc/resolv.conf", "")
    if any(line.split()[:2] == ["nameserver", _STUB] for line in text.splitlines()):
        text = _host("/run/systemd/resolve/resolv.conf", text)
    lines = [line for line in text.splitlines() if line.split()[:1] != ["nameserver"]]
    servers = attached.nameservers or [
        line.split()[1] for line in text.splitlines() if line.split()[:1] == ["nameserver"] and len(line.split()) > 1
    ]
    lines += [f"nameserver {server}" for server in servers if not server.startswith("127.") and server != "::1"]
    return "".join(f"{line}\n" for line in lines)


def _hosts(container: Container, hostname: str, attached: Attached | None) -> str:
    if container.options.network == HOST:
        text = _host("/etc/hosts", _LOOPBACK)
        named = container.options.hostname
        text = f"{text.rstrip()}\n127.0.1.1\t{named}\n" if named else text
    elif attached is not None and attached.addresses:
        text = _LOOPBACK + "".join(f"{address}\t{hostname}\n" for address in attached.addresses)
    else:
        text = f"{_LOOPBACK}127.0.1.1\t{hostname}\n"
    added = "".join(f"{address}\t{name}\n" for name, address in container.options.add_hosts)
    return f"{text.rstrip()}\n{added}" if added else text


def _host(path: str, missing: str) -> str:
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError:
        return missing


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(letter for letter in minor if letter.isdigit()) or 0)
