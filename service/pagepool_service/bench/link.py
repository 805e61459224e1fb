"""Two network namespaces of our own, joined by a link that may be slow: the server is in one, the client in the other.

Nothing of the machine's own network is touched: the only addresses are those inside (198.18.0.0/15 is set aside for
benchmarks, RFC 2544). The link is a veth pair. Shaped, it has netem on both ends, or where the kernel has none, a pair
of TUN devices between which `relay` carries the packets. The delay is half each way: `rtt_s` is a round trip.

Namespaces, devices and the relay are gone at the end of the block. What a killed benchmark leaves is two namespaces
named ``pagepool-bench-PID-…``; the next one removes those whose process has ended.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SERVER_ADDRESS: Final = "198.18.0.1"
CLIENT_ADDRESS: Final = "198.18.0.2"
_PREFIX: Final = "pagepool-bench-"
_PLACE: Final = Path("/run/netns")
_DEVICE: Final = "link0"
_TIMEOUT_S: Final = 20.0

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Shape:
    """What a link is slowed down to.

    Args:
        rate_mbit: million bits a second, each way.
        rtt_s: that a round trip takes at least.
    """

    rate_mbit: float
    rtt_s: float


@dataclass(frozen=True, slots=True)
class Link:
    """A link that is up.

    Args:
        server: command to put before another, to run it where the server is.
        client: the same where the client is.
        how: what slows it down; for people.
    """

    server: tuple[str, ...]
    client: tuple[str, ...]
    how: str

    def received(self) -> int:
        """Bytes that have come to the client, headers included, since the link is up."""
        text = _run(*self.client, "cat", "/proc/net/dev")
        line = next(line for line in text.splitlines() if line.strip().startswith(f"{_DEVICE}:"))
        return int(line.partition(":")[2].split()[0])


@contextmanager
def open_link(shape: Shape | None) -> Iterator[Link]:
    """Make a link for the length of the block. Needs root.

    Raises:
        UnsupportedError: this machine cannot; with the reason.
    """
    _remove_left()
    number = next(_numbers)
    names = [f"{_PREFIX}{os.getpid()}-{number}-{end}" for end in ("server", "client")]
    with ExitStack() as stack:
        for name in names:
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "delete", name)
        how = "nothing"
        if shape is None:
            _make_pair(names)
        elif _has_netem(names[0]):
            how = "netem"
            _make_pair(names)
            for name in names:
                rate, delay = f"{shape.rate_mbit}mbit", f"{shape.rtt_s * 500}ms"
                _run("tc", "-n", name, "qdisc", "add", "dev", _DEVICE, "root", "netem", "rate", rate, "delay", delay)
        else:
            how = "a relay (the kernel has no netem)"
            stack.enter_context(_relay(names, shape))
        for name, address in zip(names, (SERVER_ADDRESS, CLIENT_ADDRESS), strict=True):
            other = CLIENT_ADDRESS if address == SERVER_ADDRESS else SERVER_ADDRESS
            _run("ip", "-n", name, "address", "add", address, "peer", other, "dev", _DEVICE)
            for device in ("lo", _DEVICE):
                _run("ip", "-n", name, "link", "set", device, "up")
        server, client = (("nsenter", f"--net={_PLACE / name}") for name in names)
        yield Link(server, client, how)


def _make_pair(names: Sequence[str]) -> None:
    one, two = names
    _run("ip", "link", "add", "name", _DEVICE, "netns", one, "type", "veth", "peer", "name", _DEVICE, "netns", two)


def _has_netem(name: str) -> bool:
    try:
        _run("tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "0ms")
    except UnsupportedError:
        return False
    _run("tc", "-n", name, "qdisc", "delete", "dev", "lo", "root")
    return True


@contextmanager
def _relay(names: Sequence[str], shape: Shape) -> Iterator[None]:
    where = [part for name in names for part in (name, _DEVICE)]
    command = [sys.executable, "-m", "pagepool_service.bench.relay", *where]
    command += [str(shape.rate_mbit * 1e6), str(shape.rtt_s / 2)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline().strip() != "ready":
                raise UnsupportedError("no netem in the kernel, and no TUN devices: the link cannot be slowed down")
            yield
        finally:
            process.stdin.close()


def _remove_left() -> None:
    """Remove the namespaces of benchmarks that were killed."""
    for path in _PLACE.glob(f"{_PREFIX}*") if _PLACE.is_dir() else ():
        pid = path.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", pid).exists():
            _run("ip", "netns", "delete", path.name)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except FileNotFoundError as error:
        raise UnsupportedError(f"needs {command[0]} (apt-get install iproute2 util-linux)") from error
    if done.returncode:
        raise UnsupportedError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
