"""Merged trees of a pagepool service: which one an image has, and the tree file. Blocks; thread-safe."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import DigestMismatchError, ManifestUnknownError, PendingError, TreeUnknownError
from pagepool.oci import Platform
from pagepool.oci.fields import load_object
from pagepool.transport.answers import Subject
from pagepool.transport.http import Call, Session
from pagepool.transport.service import answer_error, image_url

_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True)
class TreeState:
    """The merged tree of an image.

    Args:
        image: digest of the image's manifest, one platform's.
        tree: BLAKE3 of the tree file.
        size: bytes of the tree file.
    """

    image: Digest
    tree: Digest
    size: int


class TreeClient:
    """The tree routes. The caller closes the session.

    Args:
        session: the service.
        clock: seconds that only go forward; tests replace it.
    """

    def __init__(self, session: Session, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._clock = clock

    def resolve(
        self, name: str, reference: str, platform: Platform | None = None, timeout_s: float = 60.0
    ) -> TreeState:
        """The tree of an image, once all its layers have been read.

        Args:
            name: repository.
            reference: tag or digest.
            platform: of an index, which image; None: as the service chooses.
            timeout_s: how long to wait for the layers.

        Raises:
            ManifestUnknownError: there is no such image.
            PendingError: it is not ready after `timeout_s`.
            LayerInvalidError, ResponseError: it cannot be mounted.
        """
        shown = f"{name}{'@' if ':' in reference else ':'}{reference}"
        about = Subject(ManifestUnknownError, shown, name)
        params = (("platform", str(platform)),) if platform else ()
        call = Call("GET", f"{image_url(name, reference)}/tree", about, expect=(200, 202), params=params)
        end = self._clock() + timeout_s
        while True:
            response = self._session.request(call)
            fields = load_object(response.content, "answer", answer_error)
            if response.status_code == 200:
                return TreeState(fields.digest("image"), fields.digest("tree"), fields.integer("size"))
            if self._clock() >= end:
                raise PendingError(shown, fields.strings("waiting"))
            self._session.retry.sleep(_PAUSE_S)

    def fetch(self, name: str, tree: Digest) -> bytes:
        """The tree file.

        Raises:
            TreeUnknownError: no image of the repository has it any more.
            DigestMismatchError: it is another one.
        """
        about = Subject(TreeUnknownError, str(tree), name)
        call = Call("GET", f"/v1/{name}/trees/{tree}", about, limit=1 << 31)
        data = self._session.request(call).content
        got = blake3_raw(data)
        if got != tree.raw:
            raise DigestMismatchError(tree, Digest("blake3", got), len(data))
        return data
