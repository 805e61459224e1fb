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
import os
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
    from collections.abc import Mapping, Sequence

    from pagepool.container.options import Port

CONFIGURATIONS: Final = Path("/etc/cni/net.d")
PLUGINS: Final = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
_SUBNET: Final = "10.87.0.0/16"
_INTERFACE: Final = "eth0"
_NAMESPACE: Final = "netns"
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
        OptionInvalidError: there is no such network, or its file cannot be read.
        UnsupportedError: a plug-in is not installed.
        ContainerError: a plug-in failed.
    """
    configuration = find_network(network, directory.parent / "addresses")
    directories = list(plugins or PLUGINS)
    for plugin in configuration["plugins"]:
        _program(plugin, directories)
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
            result = _call("ADD", plugin, note, namespace, result) or result
        _write(directory, {**note, "result": result})
    except BaseException:
        detach(directory)
        raise
    addresses = tuple(str(one["address"]).partition("/")[0] for one in result.get("ips", ()))
    nameservers = tuple(map(str, (result.get("dns") or {}).get("nameservers") or ()))
    return Attached(namespace, addresses, nameservers)


def detach(directory: Path) -> None:
    """Undo what `attach` did for the container of this directory, if it did anything. Raises nothing."""
    namespace = directory / _NAMESPACE
    with contextlib.suppress(OSError, ValueError, KeyError):
        note = json.loads((directory / NETWORK).read_text())
        for plugin in reversed(note["configuration"]["plugins"]):
            with contextlib.suppress(PagepoolError, OSError, subprocess.TimeoutExpired):
                _call("DEL", plugin, note, namespace, note.get("result") or {})
    with contextlib.suppress(OSError):
        mounts.unmount(namespace, mounts.MNT_DETACH)
    for path in (namespace, directory / NETWORK):
        path.unlink(missing_ok=True)


def find_network(name: str, addresses: Path, configurations: Path = CONFIGURATIONS) -> dict[str, Any]:
    """A network's configuration, as a list of plug-ins.

    Args:
        addresses: where the one that is there without a file notes which are taken.
        configurations: directory of the others' files.

    Raises:
        OptionInvalidError: there is none of that name, or a file is none.
    """
    names = {BRIDGE}
    for path in sorted(configurations.glob("*.conf*")):
        if path.suffix not in (".conf", ".conflist"):
            continue
        try:
            found = json.loads(path.read_bytes())
            label = str(found["name"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionInvalidError(str(path), f"is no configuration of a network: {error}") from error
        names.add(label)
        if label == name:
            return _as_list(found, path)
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
        "name": "pagepool",
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
    if plugin.get("capabilities", {}).get("portMappings") and note["ports"]:
        given["runtimeConfig"] = {"portMappings": [_mapping(port) for port in note["ports"]]}
    done = subprocess.run(
        [_program(plugin, note["directories"])],
        input=json.dumps(given).encode(),
        env={
            "PATH": os.pathsep.join(os.get_exec_path()),
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": note["container"],
            "CNI_NETNS": str(namespace),
            "CNI_IFNAME": _INTERFACE,
            "CNI_PATH": os.pathsep.join(note["directories"]),
        },
        capture_output=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        raise ContainerError(f"network {configuration['name']}: {plugin['type']}: {_reason(done)}")
    if command != "ADD":
        return {}
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise ContainerError(f"network {configuration['name']}: {plugin['type']} answers no JSON") from error
    return found


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
