"""Every error pagepool raises on purpose, in one tree.

Errors carry data (what was bad, where) and are rendered once at each boundary: OCI code and HTTP status in
`pagepool_service.routes.errors`, exit code in `pagepool.cli.exits`. Missing, corrupt and unreachable are
different classes, because a caller does different things about them.
"""

from __future__ import annotations


class PagepoolError(Exception):
    """The root. `str()` of every one is a sentence that names the bad value."""


# -- bad input -----------------------------------------------------------------------------------------------


class InvalidError(PagepoolError):
    """The caller gave something that cannot be used. Retrying the same will not help."""

    what = "value"

    def __init__(self, value: object, reason: str = "") -> None:
        self.value = value
        self.reason = reason
        super().__init__(f"invalid {self.what} {value!r}" + (f": {reason}" if reason else ""))


class DigestInvalidError(InvalidError):
    """Not of the form algorithm:hex."""

    what = "digest"


class DigestUnsupportedError(InvalidError):
    """A digest algorithm that is not supported (sha256, sha512 and blake3 are)."""

    what = "digest algorithm"


class NameInvalidError(InvalidError):
    """A repository name outside the specification's grammar."""

    what = "repository name"


class TagInvalidError(InvalidError):
    """A tag outside the specification's grammar."""

    what = "tag"


class ReferenceInvalidError(InvalidError):
    """An image reference that cannot be parsed."""

    what = "image reference"


class ManifestInvalidError(InvalidError):
    """A manifest that is not a manifest, or contradicts itself or its media type."""

    what = "manifest"


class ManifestBlobUnknownError(InvalidError):
    """A manifest refers to a blob or manifest that the repository does not have."""

    what = "manifest reference"


class RangeInvalidError(InvalidError):
    """A range outside of the content, or out of order in an upload."""

    what = "range"


class SizeInvalidError(InvalidError):
    """A length header or descriptor size that the content does not have."""

    what = "size"


class UploadInvalidError(InvalidError):
    """A blob upload that cannot go on."""

    what = "upload"


class LayerInvalidError(InvalidError):
    """A blob that is not a layer which could be mounted; `reason` says why."""

    what = "layer"


class ImageInvalidError(InvalidError):
    """An image layout or archive that cannot be read."""

    what = "image"


class DigestMismatchError(PagepoolError):
    """Content does not have the digest it was said to have.

    Args:
        expected: the digest that was claimed.
        got: the digest of the bytes that came.
        size: how many bytes came.
    """

    def __init__(self, expected: object, got: object, size: int) -> None:
        self.expected = expected
        self.got = got
        self.size = size
        super().__init__(f"digest mismatch: expected {expected}, got {got} over {size} bytes")


class LimitError(PagepoolError):
    """Larger than a configured limit.

    Args:
        what: what is too large.
        size: its size (bytes unless `what` says otherwise).
        limit: the configured limit.
    """

    def __init__(self, what: str, size: int, limit: int) -> None:
        self.what = what
        self.size = size
        self.limit = limit
        super().__init__(f"{what} of {size} is over the limit of {limit}")


class KernelLimitError(LimitError):
    """An image has something in it that the kernel cannot mount, whichever machine it is: FUSE can.

    Args:
        reason: what, with the limit.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason, 0, 0)
        self.args = (f"the kernel cannot mount this image: {reason}",)


# -- missing -------------------------------------------------------------------------------------------------


class NotFoundError(PagepoolError):
    """Something that is not there. It may come to be there."""

    what = "content"

    def __init__(self, name: object) -> None:
        self.name = name
        super().__init__(f"{self.what} {name} is unknown")


class BlobUnknownError(NotFoundError):
    """No such blob in this repository."""

    what = "blob"


class ManifestUnknownError(NotFoundError):
    """No such manifest or tag in this repository."""

    what = "manifest"


class NameUnknownError(NotFoundError):
    """No such repository."""

    what = "repository"


class UploadUnknownError(NotFoundError):
    """No such upload session: finished, cancelled, expired, or never begun."""

    what = "upload"


class PathUnknownError(NotFoundError):
    """No such path in an image."""

    what = "path"


class TreeUnknownError(NotFoundError):
    """No such tree in this repository."""

    what = "tree"


class ObjectUnknownError(NotFoundError):
    """No such object in a tree."""

    what = "object"


class ExtentUnknownError(NotFoundError):
    """No such extent in a tree."""

    what = "extent"


class LeaseUnknownError(NotFoundError):
    """No such lease on a tree: it ended, or was never taken."""

    what = "lease"


class ProfileUnknownError(NotFoundError):
    """No start of a tree's containers was recorded."""

    what = "start-up profile of tree"


# -- not now, not here ---------------------------------------------------------------------------------------


class StoreFullError(PagepoolError):
    """The quota or the disk is full; nothing of the request was kept.

    Args:
        reason: which limit, with its figures.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the store is full: {reason}")


class DiskFullError(StoreFullError):
    """A disk of this machine is full, not a service's store."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.args = (f"the disk is full: {reason}",)


class StoreFailedError(StoreFullError):
    """The disk under the store failed, though it is not full; nothing of the request was kept."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.args = (f"the disk under the store fails: {reason}",)


class PoolFullError(StoreFullError):
    """A pool of this machine does not take what is to be kept in it, because of its budget."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.args = (f"the pool is full: {reason}",)


class ReadOnlyError(PagepoolError):
    """The store cannot be written to (read-only file system or mode)."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the store cannot be written to: {reason}")


class StoreFormatError(PagepoolError):
    """The data directory was written by a format that this version does not know."""


class BusyError(PagepoolError):
    """Another process holds what is needed; trying again later helps."""


class UploadBusyError(BusyError):
    """Another request is writing to the same upload session."""


class PendingError(PagepoolError):
    """The image is stored, and not ready yet.

    Args:
        name: the image.
        waiting: digests of the layers still being read.
        making_s: if there are none, how long the service has been at work on its tree, in seconds.
    """

    def __init__(self, name: object, waiting: tuple[str, ...], making_s: float = 0.0) -> None:
        self.name = name
        self.waiting = waiting
        self.making_s = making_s
        reason = "1 layer is still being read" if len(waiting) == 1 else f"{len(waiting)} layers are still being read"
        if making_s and not waiting:
            reason = f"the service has been putting its tree together for {making_s:.0f} s, and goes on with it"
        super().__init__(f"{name} is not ready: {reason}")


class UnauthorizedError(PagepoolError):
    """No, or wrong, credentials."""


class DeniedError(PagepoolError):
    """The credentials do not allow it."""


class UnsupportedError(PagepoolError):
    """A request this service does not do."""


class UnreachableError(PagepoolError):
    """A service that cannot be reached, or broke off.

    Args:
        where: the address.
        reason: what happened.
    """

    def __init__(self, where: str, reason: str) -> None:
        self.where = where
        self.reason = reason
        super().__init__(f"cannot reach {where}: {reason}")


class ListenError(UnreachableError):
    """An address that cannot be listened on: somebody else does, or it is none of this machine's."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.args = (f"cannot listen on {where}: {reason}",)


class ResponseError(PagepoolError):
    """A service answered with an error that no other class says better.

    Args:
        status: the HTTP status.
        code: the OCI error code, or "".
        message: the service's own words.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(f"the service answered {status} {code}: {message}".replace(" :", ":"))


# -- containers ----------------------------------------------------------------------------------------------


class ContainerError(PagepoolError):
    """A container that could not be run, or not be started."""

    told = False
    """Whether the runtime has said why on our standard error already."""


class CommandRefusedError(ContainerError):
    """A container's program is there, and cannot be executed."""


class CommandUnknownError(ContainerError):
    """A container's program is not there."""


# -- wrong bytes ---------------------------------------------------------------------------------------------


class CorruptError(PagepoolError):
    """Stored bytes that are not what was stored. They are never served.

    Args:
        kind: the record kind (``frame``, ``extent``, ``blob`` …).
        name: the record's name: its digest, or its key in hex.
        reason: what is wrong with it.
    """

    def __init__(self, kind: str, name: str, reason: str) -> None:
        self.kind = kind
        self.name = name
        self.reason = reason
        super().__init__(f"corrupt {kind} {name}: {reason}")
