"""Networks of containers' own, by plug-ins of the Container Network Interface (CNI), as podman and nerdctl have them.

    attach    a namespace of networks, held by a file that it is mounted on; then each plug-in of the network is called
              in turn: one makes the interface, one gives it an address, one publishes ports
    detach    the plug-ins once more, the last one first, and the namespace goes

What a network is, is said by a file in /etc/cni/net.d; `bridge` is there without one. What is done for a container is
noted beside its record before it is done, so that whoever cleans up after a process that was killed can undo it.

    ID/network    JSON: the configuration, the ports, and what the last plug-in answered
    ID/netns      the namespace, mounted
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pagepool.container import linux
from pagepool.container.options import BRIDGE, OptionInvalidError
from pagepool.container.records import NETWORK
from pagepool.errors import ContainerError, PagepoolError, UnsupportedError
from pagepool.linux import mounts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pagepool.container.options import Port

log = logging.getLogger("pagepool.container")

CONFIGURATIONS: Final = Path("/etc/cni/net.d")
PLUGINS: Final = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
_SUBNET: Final = "10.87.0.0/16"
_INTERFACE: Final = "eth0"
_OWN: Final = "pagepool"
"""What plug-ins call `BRIDGE`."""
_NAMESPACE: Final = "netns"
_SETTINGS: Final = {"ipv4/ip_unprivileged_port_start": "0", "ipv4/ping_group_range": "0 2147483647"}
"""As docker has them: all ports of a network of one's own are one's own."""
_SYSTEM: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Attached:
    """What a container is attached to.

    Args:
        namespace: a path of its namespace of networks.
        addresses: of its interface, without the length of the prefix.
        nameservers: what the network says of them.
    """

    namespace: Path
    addresses: tuple[str, ...]
    nameservers: tuple[str, ...]


def attach(
    directory: Path, container: str, network: str, ports: Sequence[Port], plugins: Sequence[str] = ()
) -> Attached:
    """Make a container's network. `detach` undoes it; nothing is left if this fails.

    Args:
        directory: of the container alone; beside it is what is kept of addresses that are taken.
        container: its id.
        network: its name.
        ports: what is published.
        plugins: directories where plug-ins are looked for; none: `PLUGINS`.

    Raises:
        OptionInvalidError: there is no such network, its file cannot be read, or it publishes no ports.
        UnsupportedError: a plug-in is not installed.
        ContainerError: a plug-in failed.
    """
    configuration = find_network(network, directory.parent / "addresses")
    directories = list(plugins or PLUGINS)
    for plugin in configuration["plugins"]:
        _program(plugin, directories)
    _check_ports(network, configuration, ports)
    note = {
        "container": container,
        "configuration": configuration,
        "directories": directories,
        "ports": [asdict(port) for port in ports],
    }
    _write(directory, note)
    try:
        namespace = directory / _NAMESPACE
        namespace.touch(mode=0o600)
        _make_namespace(namespace)
        result: dict[str, Any] = {}
        for plugin in configuration["plugins"]:
            result = _call("ADD", plugin, note, namespace, result)
            _write(directory, {**note, "result": result})  # at once: to undo it takes what it answered
        found = _attached(namespace, result)
    except BaseException:
        detach(directory)
        raise
    return found


def detach(directory: Path) -> None:
    """Undo what `attach` did for the container of this directory, if it did anything.

    Raises nothing. What a plug-in could not undo is tried again by the next call: until then its note stays.
    """
    namespace = directory / _NAMESPACE
    undone = True
    with contextlib.suppress(OSError):
        if not _is_mounted(namespace):  # plug-ins know what to do without a namespace, and not with another file
            namespace.unlink(missing_ok=True)
    with contextlib.suppress(OSError, ValueError, KeyError):
        note = json.loads((directory / NETWORK).read_text())
        for plugin in reversed(note["configuration"]["plugins"]):
            try:
                _call("DEL", plugin, note, namespace, note.get("result") or {})
            except (PagepoolError, OSError) as error:
                log.warning("what is left of the network of container %s: %s", note["container"], error)
                undone = False
    with contextlib.suppress(OSError):
        mounts.unmount(namespace, mounts.MNT_DETACH)
    for path in (namespace, *([directory / NETWORK] if undone else [])):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def reserve(ports: Sequence[Port]) -> Iterator[None]:
    """Have ports of this machine for oneself: the kernel would hand packets on whoever listens there.

    Raises:
        ContainerError: somebody else has one.
    """
    with contextlib.ExitStack() as undo:
        for port in ports:
            family = socket.AF_INET6 if ":" in port.address else socket.AF_INET
            kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
            if port.protocol == "sctp":  # few kernels have it for programs
                continue
            held = undo.enter_context(socket.socket(family, kind))
            try:
                if kind == socket.SOCK_STREAM:
                    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.bind((port.address, port.host))
                if kind == socket.SOCK_STREAM:
                    held.listen(0)
            except OSError as error:
                raise ContainerError(f"port {port} cannot be published: {error.strerror}") from error
        yield


def _attached(namespace: Path, result: Mapping[str, Any]) -> Attached:
    try:
        addresses = tuple(str(one["address"]).partition("/")[0] for one in result.get("ips") or ())
        nameservers = tuple(map(str, (result.get("dns") or {}).get("nameservers") or ()))
    except (TypeError, KeyError, AttributeError) as error:
        raise ContainerError(f"a network's answer says no addresses: {json.dumps(result)[:200]}") from error
    return Attached(namespace, addresses, nameservers)


def _check_ports(network: str, configuration: Mapping[str, Any], ports: Sequence[Port]) -> None:
    if not ports:
        return
    if not any((plugin.get("capabilities") or {}).get("portMappings") for plugin in configuration["plugins"]):
        raise OptionInvalidError(str(ports[0]), f"network {network} publishes no ports: it has no plug-in portmap")
    if configuration["name"] == _OWN and any(":" in port.address for port in ports):
        raise OptionInvalidError(str(ports[0]), f"network {network} has no IPv6")


def _is_mounted(path: Path) -> bool:
    return path.stat().st_dev != path.parent.stat().st_dev


def find_network(name: str, addresses: Path, configurations: Path = CONFIGURATIONS) -> dict[str, Any]:
    """A network's configuration, as a list of plug-ins.

    Args:
        addresses: where the one that is there without a file notes which are taken.
        configurations: directory of the others' files.

    Raises:
        OptionInvalidError: there is none of that name, or a file is none.
    """
    names = {BRIDGE}
    broken: list[OptionInvalidError] = []
    for path in sorted(configurations.glob("*.conf*")):
        if path.suffix not in (".conf", ".conflist"):
            continue
        try:
            found = json.loads(path.read_bytes())
            label = str(found["name"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            broken.append(OptionInvalidError(str(path), f"is no configuration of a network: {error}"))
            continue
        names.add(label)
        if label == name:
            return _as_list(found, path)
    if name != BRIDGE and broken:
        raise broken[0]
    if name != BRIDGE:
        raise OptionInvalidError(name, f"there is no such network; there are host, none, {', '.join(sorted(names))}")
    return _bridge(addresses)


def _as_list(found: dict[str, Any], path: Path) -> dict[str, Any]:
    plugins = found.get("plugins", [found])
    named = isinstance(plugins, list) and all(isinstance(one, dict) and "type" in one for one in plugins)
    if not plugins or not named:
        raise OptionInvalidError(str(path), "is no configuration of a network: it names no plug-ins")
    return {"cniVersion": found.get("cniVersion", "0.4.0"), "name": found["name"], "plugins": plugins}


def _bridge(addresses: Path) -> dict[str, Any]:
    ranges = {
        "type": "host-local",
        "ranges": [[{"subnet": _SUBNET}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(addresses),
    }
    interface = {"type": "bridge", "bridge": "pagepool0", "isGateway": True, "ipMasq": True, "hairpinMode": True}
    return {
        "cniVersion": "0.4.0",
        "name": _OWN,
        "plugins": [
            {**interface, "ipam": ranges},
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "firewall", "backend": "iptables"},  # where all that is not allowed is not forwarded
        ],
    }


def _make_namespace(at: Path) -> None:
    """Mount a new namespace on a file. A thread has it for a moment; no process needs to."""
    failed: list[OSError] = []

    def work() -> None:
        try:
            linux.unshare(linux.CLONE_NEWNET)
            linux.raise_loopback()
            for name, value in _SETTINGS.items():
                with contextlib.suppress(OSError):  # /proc/sys is read-only, as in a container
                    Path("/proc/sys/net", name).write_text(value)
            mounts.mount("/proc/thread-self/ns/net", at, flags=mounts.MS_BIND)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _call(
    command: str, plugin: Mapping[str, Any], note: Mapping[str, Any], namespace: Path, before: Mapping[str, Any]
) -> dict[str, Any]:
    """Call a plug-in. Returns what it answers; nothing after DEL."""
    configuration = note["configuration"]
    given = {"cniVersion": configuration["cniVersion"], "name": configuration["name"], **plugin}
    if before:
        given["prevResult"] = before
    if (plugin.get("capabilities") or {}).get("portMappings") and note["ports"]:
        given["runtimeConfig"] = {"portMappings": [_mapping(port) for port in note["ports"]]}
    done = _run(
        [_program(plugin, note["directories"])],
        json.dumps(given).encode(),
        {
            "PATH": os.pathsep.join(dict.fromkeys((*os.get_exec_path(), *_SYSTEM))),  # where iptables is, under cron
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": note["container"],
            "CNI_NETNS": str(namespace),
            "CNI_IFNAME": _INTERFACE,
            "CNI_PATH": os.pathsep.join(note["directories"]),
        },
    )
    if done.returncode:
        raise ContainerError(f"network {configuration['name']}: {plugin['type']}: {_reason(done)}")
    if command != "ADD":
        return {}
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ContainerError(f"network {configuration['name']}: {plugin['type']} answers no JSON object")
    return found


def _run(words: list[str], given: bytes, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """Run a plug-in, which gets no signals of the terminal: what it has begun it ends."""
    try:
        return subprocess.run(
            words,
            input=given,
            env=environment,
            capture_output=True,
            check=False,
            timeout=_TIMEOUT_S,
            process_group=0,
        )
    except subprocess.TimeoutExpired as error:
        raise ContainerError(f"{words[0]} has not ended after {_TIMEOUT_S:.0f} s") from error


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    with contextlib.suppress(ValueError, AttributeError):
        said = json.loads(done.stdout)
        return " ".join(filter(None, (str(said.get("msg", "")), str(said.get("details", "")))))
    return done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode}"


def _mapping(port: Mapping[str, Any]) -> dict[str, Any]:
    found = {"hostPort": port["host"], "containerPort": port["container"], "protocol": port["protocol"]}
    return {**found, "hostIP": port["address"]} if port["address"] else found


def _program(plugin: Mapping[str, Any], directories: Sequence[str]) -> str:
    kind = str(plugin["type"])
    for directory in directories if "/" not in kind else ():
        if os.access(f"{directory}/{kind}", os.X_OK):
            return f"{directory}/{kind}"
    raise UnsupportedError(
        f"the network plug-in {kind} is not installed in {', '.join(directories)}: "
        "apt-get install containernetworking-plugins"
    )


def _write(directory: Path, note: Mapping[str, Any]) -> None:
    temporary = directory / f"{NETWORK}.new"
    temporary.write_text(json.dumps(note))
    temporary.rename(directory / NETWORK)
