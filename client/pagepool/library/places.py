"""Where services on this machine have their pools: noted, so that what is in them can be read while a service is gone.

One small JSON file for each service, renamed into place. Nothing in it is trusted: a pool is compared with its id when
it is opened, and read-only. What cannot be read or written is not there.

Bytes of a pool are taken as they are, so nobody may plant one where a service says that its own is: `check_owner`.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from pagepool.errors import DeniedError
from pagepool.transport.trees import PoolPlace


def check_owner(path: Path) -> None:
    """See that a directory is root's, or this user's, or where only these two can have put it.

    The service may be on another machine, or gone, and the path one below /dev/shm, where anybody can make a directory.

    Raises:
        DeniedError: it is somebody else's, who may have put anything into it.
        OSError: it is not there, or not for us to see.
    """
    trusted = (0, os.geteuid())
    owner = path.stat().st_uid
    if owner in trusted:
        return
    for above in path.resolve().parents:
        status = above.stat()
        if status.st_uid not in trusted or status.st_mode & 0o022:
            raise DeniedError(f"{path} belongs to user {owner}, in a directory that others may write to")


class PlaceNotes:
    """The notes of one user.

    Args:
        directory: made when it is needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note(self, server: str, place: PoolPlace | None) -> None:
        """Remember where the pool of a service is; that it has none, too."""
        if self.noted(server) == place:
            return
        path = self._path(server)
        with suppress(OSError):
            if place is None:
                path.unlink(missing_ok=True)
                return
            self._directory.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(json.dumps({"id": place.id, "path": str(place.path)}))
            temporary.rename(path)

    def noted(self, server: str) -> PoolPlace | None:
        """Where it was."""
        try:
            found = json.loads(self._path(server).read_text())
            return PoolPlace(str(found["id"]), Path(found["path"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _path(self, server: str) -> Path:
        return self._directory / server.replace("/", "_")
