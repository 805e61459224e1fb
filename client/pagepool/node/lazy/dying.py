"""Lets a server die that waits for its own answer.

A thread of the server's process may use the lazy mount itself: to mount an overlay over it asks for its statistics.
If the process is killed meanwhile, or has begun to end and answers nothing any more, nobody answers that request. The
kernel lets no thread die that waits for a request that was handed out, and no process that has such a thread; and until
that is gone nobody serves in its place, by which time would have brought the answer.

So another process that has the device answers these requests, with an error that only the dying see. All others are
handed out again. Needs RESEND (Linux 6.9): before, what was handed out to a server goes with its own device.

    python -m pagepool.node.lazy.dying DESCRIPTOR PROCESS       says what it did, on standard error
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sys

from pagepool.mount.device import DEVICE
from pagepool.mount.fuse import protocol
from pagepool.node.lazy import wire

_log = logging.getLogger("pagepool.node")


def answer_dying(descriptor: int, process: int) -> int:
    """Answer what threads of a dying process wait for. Returns how many requests that were. Does not block.

    Args:
        descriptor: the FUSE device of the lazy mount, which nobody else reads from.
        process: the dying one.

    Raises:
        OSError: the mount is gone, or this kernel hands nothing out again.
    """
    threads = {int(name) for name in os.listdir(f"/proc/{process}/task")}  # noqa: PTH208 - only the names
    # A device of our own does not block, whatever is taken back meanwhile.
    own = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(own, wire.CLONE, descriptor.to_bytes(4, "little"))
        os.write(own, wire.encode_resend())
        answered = 0
        try:
            for data in _requests(own):
                _, _, unique, _, _, _, waits, _, _ = protocol.IN_HEADER.unpack_from(data)
                if waits in threads:
                    os.write(own, protocol.encode_error(unique, errno.EIO))
                    answered += 1
        finally:
            os.write(own, wire.encode_resend())  # or what we have read would end with our device
        return answered
    finally:
        os.close(own)


def _requests(device: int) -> list[bytes]:
    """Everything that waits to be handed out."""
    found: list[bytes] = []
    buffer = bytearray(wire.BUFFER_SIZE)
    while True:
        try:
            size = os.readv(device, (buffer,))
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return found
            if error.errno not in (errno.ENOENT, errno.EINTR):  # it was taken back
                raise
        else:
            found.append(bytes(buffer[:size]))


def main(descriptor: int, process: int) -> None:
    """The program."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        answered = answer_dying(descriptor, process)
    except OSError as error:  # it has died meanwhile, or the mount is gone, or the kernel is too old for it
        _log.info("the worker (%d) dies, or cannot: %s", process, error)
        return
    if answered:
        _log.warning("the worker (%d) could not die: it waited for its own answer to %d requests", process, answered)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
