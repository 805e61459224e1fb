"""Follow the frame structure of a zstd stream without decompressing it, to know whether it ends where a frame
ends.

The binding's streaming reader answers end-of-file alike for a whole stream and for one that was cut short.
RFC 8878, section 3.1.
"""

from __future__ import annotations

_MAGIC = b"\x28\xb5\x2f\xfd"
_ID_SIZES = (0, 1, 2, 4)
_CONTENT_SIZES = (0, 2, 4, 8)
_RLE_BLOCK = 1


class FrameWalker:
    """Feed it a zstd stream in order; `at_frame_end` tells whether all of what came is whole frames."""

    def __init__(self) -> None:
        self._held = bytearray()  # the bytes of a header that is not complete yet
        self._skip = 0  # bytes of block, checksum or skippable content still to come
        self._in_frame = False
        self._last_block = False
        self._checksum = False

    @property
    def at_frame_end(self) -> bool:
        """No frame is open."""
        return not (self._in_frame or self._held or self._skip)

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        while view:
            if self._skip:
                step = min(self._skip, len(view))
                self._skip -= step
                view = view[step:]
                self._close_frame()
                continue
            needed = self._header_size()
            take = needed - len(self._held)
            self._held += view[:take]
            view = view[take:]
            if len(self._held) == self._header_size():
                self._take_header()

    def _header_size(self) -> int:
        """Bytes of the header being read, as far as its first bytes tell."""
        if self._in_frame:
            return 3
        held = self._held
        if len(held) < 5:
            return 5
        if held[:4] != _MAGIC:
            return 8
        descriptor = held[4]
        single = bool(descriptor & 0x20)
        content = _CONTENT_SIZES[descriptor >> 6] or (1 if single else 0)
        return 5 + (not single) + _ID_SIZES[descriptor & 3] + content

    def _take_header(self) -> None:
        held, self._held = self._held, bytearray()
        if self._in_frame:
            header = int.from_bytes(held, "little")
            self._last_block = bool(header & 1)
            self._skip = 1 if header >> 1 & 3 == _RLE_BLOCK else header >> 3
            self._close_frame()
        elif held[:4] == _MAGIC:
            self._in_frame, self._last_block = True, False
            self._checksum = bool(held[4] & 4)
        else:
            self._skip = int.from_bytes(held[4:8], "little")

    def _close_frame(self) -> None:
        """After the last block comes the checksum, if there is one, and then the frame is over."""
        if self._skip or not (self._in_frame and self._last_block):
            return
        if self._checksum:
            self._checksum = False
            self._skip = 4
        else:
            self._in_frame = False
