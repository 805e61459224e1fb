"""What the lazy mount needs to know of objects, and who is told what it did with them.

Objects are named by the 32 bytes of their BLAKE3. Everything here is called by many threads at once, and each method
may block, up to the time that is configured for a fetch; the mount holds no lock meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing_extensions import Buffer


class ObjectSource(Protocol):
    """Where objects come from."""

    def size(self, digest: bytes) -> int | None:
        """Bytes of an object of a tree that is known here; None: there is none. Does not go to the network."""

    def bring(self, digest: bytes) -> bool:
        """Put an object into the pool, whole and verified, and link it into ``fetched/``. Nothing if it is there.

        Called once at a time for each object.

        Returns:
            False: it is unknown, or cannot be kept; if it has a size it is then served by `view`.

        Raises:
            PagepoolError, OSError: it cannot be had now.
        """

    def view(self, digest: bytes, start: int, end: int) -> Buffer:
        """Verified bytes of an object, exactly those from `start` to `end`. They must stay what they are for as long as
        somebody refers to them: `served` is not called of a reader that was killed meanwhile, or of an error.

        Args:
            end: not beyond the object's end.

        Raises:
            PagepoolError, OSError: they cannot be had now.
        """

    def opened_large(self, digest: bytes) -> None:
        """A large object was looked up, and will be read by `view`: begin to fill it in the background."""


@runtime_checkable
class Served(Protocol):
    """A source that wants to know which bytes the kernel has now a copy of, so that it can let go of its own."""

    def served(self, digest: bytes, start: int, end: int) -> None:
        """The kernel has taken these bytes. Must not block for long: the thread could serve others meanwhile."""


@runtime_checkable
class InParts(Protocol):
    """A source that wants some objects to be read piece by piece that are not large."""

    def in_parts(self, digest: bytes, size: int) -> bool:
        """Whether an object is to be served by `view` rather than brought. May block for a moment."""


@runtime_checkable
class Forgetful(Protocol):
    """A source that wants to know which objects are not read by anybody any more."""

    def forgotten(self, digest: bytes) -> None:
        """The kernel has forgotten an object that it was told of: no mount has it, until it is looked up again. Must
        not block."""


@runtime_checkable
class Whole(Protocol):
    """A source that can tell when a large object need not be served any more."""

    def whole(self, digest: bytes) -> bool:
        """Whether an object is in the pool whole, *and* linked into ``fetched/``. Asked of large objects that have not
        been met before: overlayfs then goes on to the link, and reads natively."""
