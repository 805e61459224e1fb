"""gzip as Python's zlib writes it: one stream with the parameters of zlib.

Versions of zlib mostly make the same bytes, so that of another than made a blob is tried, too."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_ZLIB = f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
_LEVELS = (6, 9, 1, 5, 4, 7, 8, 3, 2)
_MEMORY_LEVELS = (8, 9)


@dataclass(frozen=True, slots=True)
class ZlibEncoder:
    """zlib's deflate with a header.

    Args:
        library: name and version.
        level: of compression, 1 to 9.
        memory: zlib's memLevel.
        header: hex of the gzip header, which is kept as it came.
    """

    library: str
    level: int
    memory: int
    header: str

    def __str__(self) -> str:
        return f"{self.library}:{self.level}"

    def encode(self) -> bytes:
        """The parameters as stored: JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, fields: dict[str, object], name: str) -> ZlibEncoder:
        """Take them from what was stored.

        Raises:
            CorruptError: they are no parameters.
        """
        match fields:
            case {"library": str(library), "level": int(level), "memory": int(memory), "header": str(header)}:
                return cls(library, level, memory, header)
        raise CorruptError("blob", name, f"its encoder cannot be read: {fields}")

    def is_here(self) -> bool:
        """See `Encoder`."""
        return self.library == _ZLIB

    def compress(self, plain: Iterable[bytes], look: Callable[[], None] = lambda: None) -> Iterator[bytes]:
        """See `Encoder`."""
        yield bytes.fromhex(self.header)
        deflate = zlib.compressobj(self.level, zlib.DEFLATED, -zlib.MAX_WBITS, self.memory)
        check = size = 0
        for piece in plain:
            look()
            check = zlib.crc32(piece, check)
            size += len(piece)
            yield deflate.compress(piece)
        yield deflate.flush() + check.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")


def zlib_encoders(header: bytes) -> list[ZlibEncoder]:
    """The encoders that may have made a blob with this gzip header."""
    return [ZlibEncoder(_ZLIB, level, memory, header.hex()) for memory in _MEMORY_LEVELS for level in _LEVELS]
