"""Merged trees of a pagepool service: which one an image has, and the tree file. Blocks; thread-safe."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pagepool.digest import Digest
from pagepool.errors import (
    DigestMismatchError,
    KernelLimitError,
    ManifestUnknownError,
    PendingError,
    SizeInvalidError,
    TreeUnknownError,
    UnsupportedError,
)
from pagepool.oci import Platform
from pagepool.oci.fields import load_object
from pagepool.transport.answers import Subject
from pagepool.transport.auth import repository_scope
from pagepool.transport.http import Call, Session
from pagepool.transport.making import Patience, Waiting
from pagepool.transport.service import answer_error, image_url
from pagepool.transport.verified import UnmadeError, download_verified

MOST_OBJECTS = 16384
_PAUSE_S = 0.2
_ZSTD = {"Accept-Encoding": "zstd"}
_LARGEST_TREE = 1 << 31
_MOST_SAID = 4 << 20
"""Bytes of what the service says of an image: with the digests of all layers that it waits for."""


@dataclass(frozen=True, slots=True)
class PoolPlace:
    """A pool as its owner names it.

    Args:
        id: what the pool itself says that it is.
        path: its directory on the owner's machine.
    """

    id: str
    path: Path


@dataclass(frozen=True, slots=True)
class TreeState:
    """The merged tree of an image.

    Args:
        image: digest of the image's manifest, one platform's.
        tree: BLAKE3 of the tree file.
        size: bytes of the tree file.
        pool: the pool that the service reads objects from, for clients on the same machine; None if it has none.
    """

    image: Digest
    tree: Digest
    size: int
    pool: PoolPlace | None = None


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
        self,
        name: str,
        reference: str,
        platform: Platform | None = None,
        timeout_s: float = 60.0,
        patience: Patience | None = None,
        layers: int | None = None,
    ) -> TreeState:
        """The tree of an image, once all its layers have been read.

        Args:
            name: repository.
            reference: tag or digest.
            platform: of an index, which image; None: as the service chooses.
            timeout_s: how long to wait for the layers.
            patience: how long for the tree, if it has to be made first.
            layers: the tree of the first so many layers only, which does not wait for the others; None: of all.

        Raises:
            ManifestUnknownError: there is no such image.
            UnsupportedError: the service is of an earlier version, which does not know of `layers`; or the image does
                not have so many.
            PendingError: it is not ready after `timeout_s`, or the tree takes longer than there is patience.
            LayerInvalidError, ResponseError: it cannot be mounted.
        """
        shown = f"{name}{'@' if ':' in reference else ':'}{reference}"
        about = Subject(ManifestUnknownError, shown, name)
        wanted = (("platform", platform), ("layers", layers))
        params = tuple((key, str(value)) for key, value in wanted if value is not None)
        waiting = Waiting(self._session, shown, patience or Patience(), self._clock)
        call = Call(
            "GET",
            f"{image_url(name, reference)}/tree",
            about,
            expect=(200, 202),
            params=params,
            headers=waiting.headers,
            scope=repository_scope(name),
            limit=_MOST_SAID,
        )
        end = self._clock() + timeout_s
        while True:
            response = self._session.request(call)
            fields = load_object(response.content, "answer", answer_error)
            if response.status_code == 200:
                if layers is not None and (not fields.has("layers") or fields.integer("layers") != layers):
                    raise UnsupportedError(
                        f"{self._session.where} gives the tree of all layers of {shown}, where the first {layers} were "
                        "asked for: the service is of an earlier version"
                    )
                pool = fields.object("cache") if fields.has("cache") else None
                place = None if pool is None else PoolPlace(pool.string("id"), Path(pool.string("path")))
                return TreeState(fields.digest("image"), fields.digest("tree"), fields.integer("size"), place)
            if fields.has("making"):
                waiting.pause(response.content)
                continue
            if self._clock() >= end:
                raise PendingError(shown, fields.strings("waiting"))
            self._session.retry.sleep(_PAUSE_S)

    def fetch(self, name: str, tree: Digest) -> bytes:
        """The tree file. Raises as `fetch_into`, but for OSError."""
        out = io.BytesIO()
        self.fetch_into(name, tree, out)
        return out.getvalue()

    def fetch_into(self, name: str, tree: Digest, out: BinaryIO) -> None:
        """Write the tree file into a file. It comes compressed, and may be much larger than what is sent.

        Args:
            out: written from where it stands, and can be cut there again.

        Raises:
            TreeUnknownError: no image of the repository has it any more.
            DigestMismatchError: it is another one; `out` may have some of that.
            UnreachableError: the connection broke, again and again.
            OSError: it cannot be written.
        """
        about = Subject(TreeUnknownError, str(tree), name)
        call = Call("GET", f"/v1/{name}/trees/{tree}", about, headers=_ZSTD, scope=repository_scope(name))
        got = download_verified(self._session, call, out, limit=_LARGEST_TREE)
        if got != tree:
            raise DigestMismatchError(tree, got, out.tell())

    def fetch_erofs(self, name: str, tree: Digest, out: BinaryIO | Path, patience: Patience | None = None) -> Digest:
        """The EROFS image of a tree (docs/format/erofs.md). Blocks while the service makes it and it is loaded.

        Args:
            out: a file, written from where it stands, which can be cut there again if the connection breaks; or a path,
                where the image stands once it is whole and verified.
            patience: how long to wait for the image, if it has to be made first.

        Returns:
            the BLAKE3 of the image.

        Raises:
            TreeUnknownError: no image of the repository has the tree any more.
            PendingError: making it takes longer than there is patience.
            KernelLimitError: the service cannot make it, because the tree has something in it that EROFS cannot hold.
            CorruptError: the service cannot make it, because a small file's content is damaged there.
            DigestMismatchError: it is not what the service says that it is; `out` is cut, or not there.
            UnreachableError: the connection broke, again and again.
            OSError: it cannot be written.
        """
        about = Subject(TreeUnknownError, str(tree), name)
        waiting = Waiting(self._session, f"the tree of {name}", patience or Patience(), self._clock)
        call = Call(
            "GET",
            f"/v1/{name}/trees/{tree}/erofs",
            about,
            expect=(200, 202),
            headers={**_ZSTD, **waiting.headers},
            scope=repository_scope(name),
        )
        if not isinstance(out, Path):
            return self._download_erofs(call, out, waiting)
        temporary = out.with_name(f".{out.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with temporary.open("w+b") as file:
                digest = self._download_erofs(call, file, waiting)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
        return digest

    def _download_erofs(self, call: Call, out: BinaryIO, waiting: Waiting) -> Digest:
        while True:
            try:
                return download_verified(self._session, call, out)
            except UnmadeError as unmade:
                waiting.pause(unmade.body)
            except SizeInvalidError as error:  # nothing was sent that could be of a wrong size: it is the tree
                raise KernelLimitError(error.reason) from error

    def fill(
        self,
        name: str,
        tree: Digest,
        objects: Sequence[tuple[bytes, int, int]],
        *,
        pool_id: str | None = None,
        within_s: float | None = None,
    ) -> int:
        """Have the service bring objects of a tree into its own pool. Blocks, for seconds at most.

        Args:
            objects: most urgent first: raw digest, and extents `[first, end)`; at most `MOST_OBJECTS` are asked for.
            pool_id: the pool that is meant.
            within_s: how long the service may take, at most; None: as it likes.

        Returns:
            how many of them, from the first on, are there now.

        Raises:
            UnsupportedError: the service has no pool, or another one.
            CorruptError: the first that is not there is damaged.
        """
        wanted = [{"object": digest.hex(), "extents": [first, end]} for digest, first, end in objects[:MOST_OBJECTS]]
        limit = {} if within_s is None else {"within_s": within_s}
        body = json.dumps({"objects": wanted, **limit}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        about = Subject(TreeUnknownError, str(tree), name)
        call = Call(
            "POST",
            f"/v1/{name}/trees/{tree}/fill",
            about,
            headers=headers,
            body=lambda: (body,),
            scope=repository_scope(name),
        )
        answer = load_object(self._session.request(call).content, "answer", answer_error)
        if pool_id is not None and answer.string("id") != pool_id:
            raise UnsupportedError(f"{self._session.where} has another pool by now")
        return answer.integer("present")
