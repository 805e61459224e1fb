"""A link of a given rate and delay between two network namespaces, where the kernel has no netem: packets go by here.

    python -m pagepool_service.bench.relay NAMESPACE INTERFACE NAMESPACE INTERFACE RATE_BITS DELAY_S

Makes a TUN device in each namespace and carries packets between them, each way at most RATE_BITS a second, each packet
DELAY_S late, with a queue as routers have it: what does not fit is dropped. Prints ``ready`` when both devices are
there; they vanish with the process, which ends when its standard input does. Takes about a sixth of a processor at
100 Mbit/s.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_PACKET_SIZE: Final = 65536
_QUEUE_S: Final = 0.05
_BURST: Final = 64


@dataclass(slots=True)
class Lane:
    """One direction: when a packet that comes now is to be handed on. Pure: the clock is the caller's.

    Args:
        rate: bytes a second.
        delay_s: that each packet takes beyond the time it takes at this rate.
        queue_s: how long a packet may wait for those before it.
    """

    rate: float
    delay_s: float
    queue_s: float = _QUEUE_S
    _waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    _free_at: float = 0.0

    def put(self, now: float, packet: bytes) -> bool:
        """Take a packet; False if it is dropped."""
        begin = max(now, self._free_at)
        if begin - now > self.queue_s:
            return False
        self._free_at = begin + len(packet) / self.rate
        self._waiting.append((self._free_at + self.delay_s, packet))
        return True

    def due(self, now: float) -> bytes | None:
        """The next packet, if it is time."""
        if self._waiting and self._waiting[0][0] <= now:
            return self._waiting.popleft()[1]
        return None

    def next_s(self, now: float) -> float | None:
        """Seconds until the next packet is due; None if there is none."""
        return max(0.0, self._waiting[0][0] - now) if self._waiting else None


def carry(first: int, second: int, rate: float, delay_s: float) -> None:
    """Carry packets between two devices, non-blocking ones, until standard input ends."""
    lanes = {first: (second, Lane(rate, delay_s)), second: (first, Lane(rate, delay_s))}
    while True:
        now = time.monotonic()
        waits = []
        for target, lane in lanes.values():
            while (packet := lane.due(now)) is not None:
                _write(target, packet)
            waits.append(lane.next_s(now))
        soonest = min((wait for wait in waits if wait is not None), default=None)
        ready, _, _ = select.select([0, *lanes], [], [], soonest)
        if 0 in ready:
            return
        for source in ready:
            _take(source, lanes[source][1])


def _take(source: int, lane: Lane) -> None:
    for _ in range(_BURST):
        try:
            packet = os.read(source, _PACKET_SIZE)
        except BlockingIOError:
            return
        lane.put(time.monotonic(), packet)


def _write(target: int, packet: bytes) -> None:
    try:
        os.write(target, packet)
    except OSError:  # the device is down, or its queue full: a packet is lost, as on any link
        return


def _open(namespace: str, interface: str) -> int:
    """A TUN device in a network namespace, where this process is from then on."""
    with open(f"/run/netns/{namespace}", "rb") as handle:  # noqa: PTH123 - a descriptor is needed
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), namespace)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", interface.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def main(arguments: list[str]) -> None:
    """Run; see the module."""
    first = _open(arguments[0], arguments[1])
    second = _open(arguments[2], arguments[3])
    print("ready", flush=True)
    carry(first, second, float(arguments[4]) / 8, float(arguments[5]))


if __name__ == "__main__":
    main(sys.argv[1:])
