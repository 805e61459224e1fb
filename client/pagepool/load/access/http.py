"""Images page by page over HTTP, as somebody without a pool reads them: each read is a request."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NoReturn

from pagepool.digest import Digest
from pagepool.errors import ObjectUnknownError, PathUnknownError, ResponseError, UnsupportedError
from pagepool.image.treefile import TreeFile
from pagepool.transport.answers import Subject
from pagepool.transport.http import Call

if TYPE_CHECKING:
    from pagepool.library import Client
    from pagepool.oci import Reference

_MOST_TREES: Final = 8


class HttpImage:
    """An image by its tree.

    Args:
        repository: where it is.
        tree: maps paths to objects; kept by the caller.
        manifest: of the image.
    """

    def __init__(self, client: Client, repository: str, name: Digest, tree: TreeFile, manifest: Digest) -> None:
        self.manifest = manifest
        self._session, self._repository, self._name, self._tree = client.session, repository, name, tree
        self._objects: dict[bytes, tuple[str, int]] = {}

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        """See `Opened`."""
        url, length = self._object(path)
        end = min(offset + size, length)
        if offset >= end:
            return b""
        headers = {"Range": f"bytes={offset}-{end - 1}"}
        about = Subject(ObjectUnknownError, url, self._repository)
        answer = self._session.request(Call("GET", url, about, expect=(200, 206), headers=headers))
        if answer.status_code == 200 and end - offset != length:
            raise ResponseError(200, "", f"asked for {headers['Range']}, it sent {len(answer.content)} bytes")
        return answer.content

    def close(self) -> None:
        """See `Opened`: nothing is held."""

    def _object(self, path: bytes) -> tuple[str, int]:
        """Where a file's content is, and its size."""
        found = self._objects.get(path)
        if found is None:
            node = self._tree.node(self._find(path))
            url = ""
            if node.size:
                digest = Digest("blake3", self._tree.object(node.object).digest)
                url = f"/v1/{self._repository}/trees/{self._name}/objects/{digest}"
            found = self._objects[path] = url, node.size
        return found

    def _find(self, path: bytes) -> int:
        ino = 1
        for name in path.split(b"/"):
            ino = self._tree.child(ino, name)
            if not ino:
                raise PathUnknownError(f"{self._repository}:/{path.decode(errors='replace')}")
        return ino


class HttpAccess:
    """See `Access`.

    Args:
        client: closed with this.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._trees: OrderedDict[Digest, TreeFile] = OrderedDict()

    def open(self, reference: Reference) -> HttpImage:
        """See `Access`. A tree that was fetched is kept: its name is its digest."""
        state = self._client.trees.resolve(reference.repository, reference.target)
        tree = self._trees.get(state.tree)
        if tree is None:
            data = self._client.trees.fetch(reference.repository, state.tree)
            tree = self._trees[state.tree] = TreeFile(data, state.tree.raw)
            if len(self._trees) > _MOST_TREES:
                self._trees.popitem(last=False)
        return HttpImage(self._client, reference.repository, state.tree, tree, state.image)

    def open_overlay(self, reference: Reference, name: str) -> NoReturn:  # noqa: ARG002 - the interface's signature
        """See `Access`."""
        raise UnsupportedError("over HTTP nothing is written: overlays are for the modes library, fuse and kernel")

    def discard(self, name: str) -> None:
        """See `Access`."""

    def requests(self) -> None:
        """See `Access`: every read is one."""
        return None  # noqa: RET501 - an answer, not the lack of one

    def memory_pids(self) -> list[int]:
        """See `Access`."""
        return []

    def close(self) -> None:
        """See `Access`."""
        self._client.close()
