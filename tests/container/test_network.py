"""Networks of containers' own: in a namespace of networks that stands for the machine's, so that this one's stays."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.container import OptionInvalidError
from pagepool.container.network import _call, find_network
from pagepool.container.options import Port, RunOptions, check_options
from pagepool.container.written import parse_publish
from tests.container.conftest import wait_until_gone
from tests.support.tools import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.container.conftest import Place

_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
_PLAIN = {"type": "plain", "capabilities": None}
_SERVER = "import http.server as h; h.HTTPServer(('', 80), h.SimpleHTTPRequestHandler).serve_forever()"
_ASK = "import urllib.request as u, sys; print(u.urlopen(sys.argv[1], timeout=20).read().decode()[:20])"


class Machine:
    """A namespace of networks, and commands in it."""

    def __init__(self, place: Place, pid: int) -> None:
        self.place = place
        self._enter = ["nsenter", "-t", str(pid), "-n"]

    def run(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a container."""
        words = list(options)
        words.insert(words.index("--"), "app:1")
        return self.place.call(*self._enter, *self.place.argv(*words), **variables)

    def command(self, *words: str) -> str:
        """What a command of pagepool's says."""
        done = self.place.call(*self._enter, *self.place.command(*words))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tool(self, *words: str) -> str:
        """What a tool says."""
        return subprocess.run([*self._enter, *words], check=True, capture_output=True, text=True).stdout

    def ask(self, url: str) -> str:
        """What a server answers, once it does."""
        deadline = time.monotonic() + 30
        while True:
            done = self.place.call(*self._enter, "python3", "-c", _ASK, url)
            if done.returncode == 0 or time.monotonic() > deadline:
                return done.stdout + done.stderr
            time.sleep(0.1)

    def serve(self, name: str, *options: str) -> dict[str, Any]:
        """Start a server in the background; what `ps` says of it."""
        words = ("--detach", "--name", name, *options, "--", "python3", "-c", _SERVER)
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(self.command("ps", "--json", "--filter", f"name={name}"))["containers"][0]
        return found


@pytest.fixture
def machine(place: Place) -> Iterator[Machine]:
    for tool in ("nsenter", "unshare", "ip", "iptables"):
        require(tool)
    if not Path("/usr/lib/cni/bridge").exists():
        pytest.skip("needs containernetworking-plugins")
    words = ["unshare", "-n", "sh", "-c", "ip link set lo up; echo; exec sleep 1000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield Machine(place, process.pid)
        finally:
            process.kill()


def check_nothing_is_left(machine: Machine) -> None:
    """Of containers that have ended: no rule, no address, no namespace."""
    assert "dport" not in machine.tool("iptables", "-t", "nat", "-S")
    assert "10.87." not in machine.tool("iptables", "-S")
    assert "veth" not in machine.tool("ip", "-o", "link")
    taken = machine.place.directory / "addresses" / "pagepool"
    assert not list(taken.glob("10.87.*"))
    assert str(machine.place.directory) not in Path("/proc/self/mountinfo").read_text()
    assert not list(machine.place.directory.glob("*/network"))


@_ROOT
def test_ports_are_published(machine: Machine) -> None:
    """For this machine and for other containers; and nothing is left of it."""
    found = machine.serve("web", "-p", "18080:80", "--publish", "127.0.0.1:18081:80/tcp")
    assert found["network"] == "bridge"
    assert found["ports"] == ["0.0.0.0:18080->80/tcp", "127.0.0.1:18081->80/tcp"]
    (address,) = found["addresses"]
    for url in ("http://127.0.0.1:18080/etc/hostname", "http://127.0.0.1:18081/", f"http://{address}/etc/hostname"):
        assert "Error" not in machine.ask(url), url
    assert machine.ask(f"http://{address}/etc/hostname").strip() == found["id"][:12]
    done = machine.run("--network", "bridge", "--", "python3", "-c", _ASK, f"http://{address}/etc/hostname")
    assert done.stdout.strip() == found["id"][:12], done.stderr
    assert "18080->80" in machine.command("ps")
    shown = machine.command("exec", "web", "cat", "/etc/hosts", "/sys/class/net/eth0/operstate", "/proc/net/dev")
    assert f"{address}\t{found['id'][:12]}" in shown
    assert "up\n" in shown
    assert " lo:" in shown
    machine.command("stop", "--time", "0", "web")
    check_nothing_is_left(machine)


@_ROOT
def test_what_was_killed_leaves_nothing_either(machine: Machine) -> None:
    """Once the next container has come."""
    machine.serve("web", "-p", "18080:80")
    (record,) = machine.place.containers()
    os.kill(record.owner, 9)
    wait_until_gone(record.owner)
    done = machine.run("--network", "bridge", "--", "cat", "/proc/net/route")
    assert done.returncode == 0, done.stderr
    assert "eth0\t00000000" in done.stdout
    check_nothing_is_left(machine)


@_ROOT
def test_without_plug_ins(machine: Machine) -> None:
    done = machine.run("-p", "18080:80", "--", "true", CNI_PATH="/nowhere")
    assert (done.returncode, "apt-get install containernetworking-plugins" in done.stderr) == (125, True), done.stderr
    done = machine.run("--network", "none", "-p", "18080:80", "--", "true")
    assert (done.returncode, "--network bridge" in done.stderr) == (125, True), done.stderr
    done = machine.run("--network", "nope", "--", "true")
    assert (done.returncode, "there are host, none, bridge" in done.stderr) == (125, True), done.stderr
    check_nothing_is_left(machine)


@_ROOT
def test_a_plug_in_that_fails(machine: Machine, tmp_path: Path) -> None:
    """What the ones before it have done is undone."""
    for name in ("bridge", "host-local", "firewall"):
        (tmp_path / name).symlink_to(f"/usr/lib/cni/{name}")
    script = '[ $CNI_COMMAND = DEL ] && exit; echo \'{"code": 7, "msg": "no room", "details": "here"}\'; exit 1'
    (tmp_path / "portmap").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "portmap").chmod(0o755)
    done = machine.run("-p", "18080:80", "--", "true", CNI_PATH=str(tmp_path))
    assert (done.returncode, "portmap: no room here" in done.stderr) == (125, True), done.stderr
    check_nothing_is_left(machine)


@_ROOT
def test_a_port_is_somebodys(machine: Machine) -> None:
    """A container's, or another program's: both would be had by whom the kernel finds first."""
    machine.serve("web", "-p", "18080:80")
    for port in ("18080:80", "127.0.0.1:18080:80"):
        done = machine.run("-p", port, "--", "true")
        assert (done.returncode, "cannot be published: Address already in use" in done.stderr) == (125, True)
    machine.command("stop", "--time", "0", "web")
    assert machine.run("-p", "18080:80", "-p", "18080:80/udp", "-u", "nobody", "--", "true").returncode == 0
    check_nothing_is_left(machine)


@_ROOT
def test_what_cannot_be_undone_is_tried_again(machine: Machine, tmp_path: Path) -> None:
    """With the plug-ins of before, whatever the next container has."""
    for name in ("bridge", "host-local", "firewall", "portmap"):
        (tmp_path / name).symlink_to(f"/usr/lib/cni/{name}")
    script = "import time; open('/ready', 'w').close(); time.sleep(1000)"
    words = ("--detach", "--name", "web", "-p", "18080:80", "--", "python3", "-c", script)
    assert machine.run(*words, CNI_PATH=str(tmp_path)).returncode == 0
    (tmp_path / "portmap").unlink()
    machine.command("stop", "--time", "0", "web")
    assert "dport 18080" in machine.tool("iptables", "-t", "nat", "-S")
    assert machine.command("ps", "--quiet") == ""
    (tmp_path / "portmap").symlink_to("/usr/lib/cni/portmap")
    assert machine.run("--", "true").returncode == 0
    check_nothing_is_left(machine)


def test_networks_are_files(tmp_path: Path) -> None:
    plugin = {"type": "ptp", "ipam": {"type": "dhcp"}}
    (tmp_path / "10-one.conf").write_text(json.dumps({"cniVersion": "1.0.0", "name": "one", **plugin}))
    (tmp_path / "20-two.conflist").write_text(json.dumps({"name": "two", "plugins": [plugin]}))
    (tmp_path / "README").write_text("no network")
    found = find_network("one", tmp_path, tmp_path)
    assert (found["cniVersion"], found["name"], len(found["plugins"])) == ("1.0.0", "one", 1)
    assert find_network("two", tmp_path, tmp_path)["plugins"] == [plugin]
    assert find_network("bridge", tmp_path, tmp_path)["name"] == "pagepool"
    (tmp_path / "30-mine.conflist").write_text(json.dumps({"name": "bridge", "plugins": [plugin]}))
    assert find_network("bridge", tmp_path, tmp_path)["plugins"] == [plugin]
    with pytest.raises(OptionInvalidError, match="host, none, bridge, one, two"):
        find_network("three", tmp_path, tmp_path)
    for text in ("{", "[]", '{"plugins": []}', '{"name": "x", "plugins": []}', '{"name": "x", "plugins": [{}]}'):
        (tmp_path / "05-bad.conflist").write_text(text)
        with pytest.raises(OptionInvalidError, match=r"05-bad\.conflist"):
            find_network("x", tmp_path, tmp_path)
        assert find_network("one", tmp_path, tmp_path)["name"] == "one"


def test_a_network_whose_plug_in_says_nothing_of_capabilities(tmp_path: Path) -> None:
    """Programs that write such files write null, too."""
    (tmp_path / "10-one.conflist").write_text(json.dumps({"name": "one", "plugins": [_PLAIN]}))
    program = tmp_path / "plain"
    program.write_text("#!/bin/sh\necho '{}'\n")
    program.chmod(0o755)
    note = {"container": "c", "directories": [str(tmp_path)], "ports": [asdict(Port(8080, 80))]}
    configuration = find_network("one", tmp_path, tmp_path)
    assert _call("ADD", _PLAIN, {**note, "configuration": configuration}, tmp_path / "netns", {}) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", (Port(8080, 80),)),
        ("127.0.0.1:53:53/udp", (Port(53, 53, "udp", "127.0.0.1"),)),
        ("[::1]:8080:80", (Port(8080, 80, "tcp", "::1"),)),
        ("9000-9001:80-81", (Port(9000, 80), Port(9001, 81))),
        ("1:65535/sctp", (Port(1, 65535, "sctp"),)),
    ],
)
def test_ports(text: str, expected: tuple[Port, ...]) -> None:
    assert parse_publish(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "80", ":80", "x:80", "8080:0", "8080:65536", "1-2:1-3", "2-1:2-1", "8080:80/icmp", "1.2.3:8080:80", "a:1:2:3"],
)
def test_what_are_no_ports(text: str) -> None:
    with pytest.raises(OptionInvalidError):
        parse_publish(text)


def test_a_port_is_published_once() -> None:
    with pytest.raises(OptionInvalidError, match="twice"):
        check_options(RunOptions(network="bridge", ports=(Port(80, 80), Port(80, 81))))
    check_options(RunOptions(network="bridge", ports=(Port(80, 80), Port(80, 80, "udp"))))
    with pytest.raises(OptionInvalidError, match="no name of a network"):
        check_options(RunOptions(network="../x"))
    assert str(Port(80, 8080, "udp", "::1")) == "[::1]:80->8080/udp"
