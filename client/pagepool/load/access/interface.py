"""What a load test's client does with images, whatever it reads them through. One thread; everything blocks.

Errors are pagepool's own and the operating system's, from every method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from pagepool.digest import Digest
    from pagepool.oci import Reference

MODES: Final = {
    "library": "the Python library, without privileges",
    "fuse": "FUSE mounts, each served by a process of its own",
    "kernel": "mounts by the kernel, through this machine's node; root only",
    "http": "page reads over HTTP, without a pool; nothing is written",
}


class Opened(Protocol):
    """An image that is open, or an overlay of it."""

    manifest: Digest
    """Of the image."""

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        """Bytes of a file, fewer only at its end; they have been touched when it returns."""
        ...

    def close(self) -> None:
        """Let go of it; what was written to an overlay stays."""
        ...


class Writable(Opened, Protocol):
    """An overlay."""

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        """Write into a file, which is made if it is not there."""
        ...

    def truncate(self, path: bytes, size: int) -> None:
        """Make a file that long."""
        ...

    def sync(self, path: bytes) -> None:
        """Make what was written to a file, at least, survive the loss of power."""
        ...


class Access(Protocol):
    """One way to images."""

    def open(self, reference: Reference) -> Opened:
        """Resolve an image, and open or mount it anew."""
        ...

    def open_overlay(self, reference: Reference, name: str) -> Writable:
        """An overlay of an image; one that was made before under that name is taken up again.

        Raises:
            UnsupportedError: this way writes nothing.
        """
        ...

    def discard(self, name: str) -> None:
        """Remove a closed overlay and all that was written to it."""
        ...

    def requests(self) -> int | None:
        """How many requests reading has cost so far; None if this process cannot tell."""
        ...

    def memory_pids(self) -> list[int]:
        """Processes beside this one that work for it alone: their memory is this client's."""
        ...

    def close(self) -> None:
        """Let go of everything that is open, and unmount."""
        ...
