"""What of the FUSE protocol only the lazy mount uses: INIT's second set of flags, RESEND, and what came of INIT.

RESEND (Linux 6.9, protocol 7.40; ``FUSE_NOTIFY_RESEND`` of ``include/uapi/linux/fuse.h``): a server tells the kernel to
hand out again what has been handed out and not been answered. The number of a request that comes again has
`UNIQUE_RESEND` set, and the answer has to carry it as it came.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final

from pagepool.errors import UnsupportedError
from pagepool.image.member import Kind
from pagepool.mount.fuse import protocol
from pagepool.mount.fuse.protocol import InitFlag
from pagepool.vfs.interface import Attributes

if TYPE_CHECKING:
    from pathlib import Path

UNIQUE_RESEND: Final = 1 << 63
HAS_RESEND: Final = 1 << 7
"""In the second set of flags."""
CLONE: Final = 0x8004E500
"""``FUSE_DEV_IOC_CLONE``: give a newly opened device the same connection."""
BUFFER_SIZE: Final = 16 << 10
"""Room for any request: nothing is written, and nothing is longer than a name."""

_NOTIFY_RESEND: Final = 7
_MAX_WRITE: Final = 4096
_FLAGS: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.BIG_WRITES
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.NO_OPENDIR_SUPPORT
    | InitFlag.EXPLICIT_INVAL_DATA
)
_NEEDED: Final = InitFlag.NO_OPEN_SUPPORT | InitFlag.NO_OPENDIR_SUPPORT | InitFlag.MAX_PAGES | InitFlag.PARALLEL_DIROPS
_INIT_EXT_IN: Final = Struct("=IIIII")


@dataclass(frozen=True, slots=True)
class Agreement:
    """What kernel and server agreed on in INIT.

    Args:
        minor: of the protocol.
        flags, flags2: what both can.
        max_readahead: bytes.
    """

    minor: int
    flags: int
    flags2: int
    max_readahead: int

    @property
    def resend(self) -> bool:
        """Whether requests in flight can be had again."""
        return bool(self.flags2 & HAS_RESEND)


def plan_agreement(body: memoryview, max_readahead: int, *, resend: bool = True) -> Agreement:
    """Decide what to answer INIT.

    Args:
        body: of the request.
        max_readahead: bytes that the server wants.
        resend: False: do without RESEND.

    Raises:
        UnsupportedError: this kernel's FUSE is too old.
        ProtocolError: that is no INIT.
    """
    init = protocol.parse_init(body)
    if init.major != protocol.MAJOR or init.minor < protocol.OLDEST_MINOR or init.flags & _NEEDED != _NEEDED:
        raise UnsupportedError(f"this kernel speaks FUSE {init.major}.{init.minor}, which the lazy mount cannot use")
    flags, flags2 = init.flags & _FLAGS, 0
    if init.flags & InitFlag.INIT_EXT and len(body) >= _INIT_EXT_IN.size:
        flags |= InitFlag.INIT_EXT
        flags2 = _INIT_EXT_IN.unpack_from(body)[4] & (HAS_RESEND if resend else 0)
    return Agreement(min(init.minor, protocol.MINOR), int(flags), flags2, max_readahead)


def encode_agreement(agreement: Agreement, background: int) -> bytes:
    """The answer to INIT.

    Args:
        background: read-ahead requests that the kernel sends at the same time.
    """
    return protocol.INIT_OUT.pack(
        *(protocol.MAJOR, agreement.minor, agreement.max_readahead, agreement.flags),
        *(background, background * 3 // 4, _MAX_WRITE, 1, protocol.MAX_PAGES, 0, agreement.flags2),
    )


def encode_resend() -> bytes:
    """The message that asks for everything that is not answered."""
    return protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size, _NOTIFY_RESEND, 0)


def write_agreement(path: Path, agreement: Agreement) -> None:
    """Write down what was agreed on, for servers that come later."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(asdict(agreement)))
    temporary.replace(path)


def read_agreement(path: Path) -> Agreement | None:
    """What was agreed on; None if INIT has not been answered."""
    try:
        return Agreement(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def directory_attributes(node: int) -> Attributes:
    """What stat(2) shows of a directory."""
    return Attributes(node, Kind.DIRECTORY, 0o555, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0)


def object_attributes(node: int, size: int) -> Attributes:
    """What stat(2) shows of a large object."""
    return Attributes(node, Kind.REGULAR, 0o444, 0, 0, size, 1, 0, 0, 0, 0, 0, -(-size // 512))
