"""After a push: waiting until the service has read the layers, and can show the image's files.

`push` and `commit` wait for what they have pushed, other commands for what docker or podman has pushed just before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagepool.cli.progress import spinner
from pagepool.errors import ManifestUnknownError, UnsupportedError

if TYPE_CHECKING:
    from pagepool.cli.connect import Connection
    from pagepool.transport import ImageState


def check_wait(connection: Connection, wait: bool | None) -> bool:
    """Whether there is something to wait for.

    Args:
        wait: what the user wants; None if he did not say.

    Raises:
        UnsupportedError: the user wants to wait, and this server cannot say.
    """
    if wait is False:
        return False
    available = connection.service.available()
    if wait and not available:
        raise UnsupportedError(f"{connection.session.where} is not a pagepool service: there is nothing to wait for")
    return available


def wait_until_read(connection: Connection, repository: str, target: str, timeout_s: float) -> ImageState | None:
    """Wait until all layers of an image have been read; None if it is none, but an artifact, or an index of artifacts.

    Args:
        target: tag or digest.

    Raises:
        PendingError: they were not after `timeout_s`.
    """
    with spinner("waiting for the layers to be read") as show:

        def tell(image: ImageState) -> None:
            done = len(image.layers) - len(image.waiting)
            show(f"layers read: {done} of {len(image.layers)}")

        try:
            return connection.service.wait(repository, target, timeout_s, tell)
        except ManifestUnknownError:
            return None
