"""Where a node keeps what it has. Owns the names of files and directories, nothing in them.

    STATE.xfs                 a file system for all of STATE, if there is one (`pagepool node start --pool-image`)
    STATE/pool/               objects: a pool (docs/format/pool.md), the node's own
    STATE/fetched/ab/cdef…    second names of objects that were just fetched, for a minute
    STATE/trees/HEX           tree files; HEX.erofs metadata images
    STATE/containers/ID/      upper, work, info.json: what one mount has written
    STATE.xfs                 with --pool-image: the file system that is mounted at STATE
    RUN/control.sock          where commands ask
    RUN/sources/HEX.json      which service a tree comes from, and with which credentials
    RUN/mounts/ID.json        what is mounted
    RUN/trees/HEX/            the metadata image of a tree, mounted once
    RUN/lazy/                 the lazy mount
    RUN/serving/              what the server of the lazy mount has to remember
    RUN/log, log.1            what the node has to say, and what it said last before that was begun anew

STATE outlives a boot, RUN does not need to: nothing is mounted after one. RUN is root's alone (credentials are in it).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagepool.errors import DeniedError, InvalidError

DEFAULT_STATE: Final = Path("/var/lib/pagepool/node")
DEFAULT_RUN: Final = Path("/run/pagepool/node")
_MOST_SOCKET_NAME: Final = 107


@dataclass(frozen=True, slots=True)
class NodePlaces:
    """The two directories of a node.

    Args:
        state: what is kept.
        run: what goes with the boot.
    """

    state: Path = DEFAULT_STATE
    run: Path = DEFAULT_RUN

    @property
    def pool(self) -> Path:
        """The pool."""
        return self.state / "pool"

    @property
    def pool_image(self) -> Path:
        """A file with a file system that is mounted at STATE, if it is there."""
        return self.state.with_name(f"{self.state.name}.xfs")

    @property
    def start_lock(self) -> Path:
        """Locked by who starts the node, or takes away what is left of it."""
        return self.run / "start.lock"

    @property
    def objects(self) -> Path:
        """The pool's whole objects: the first layer of data."""
        return self.pool / "objects"

    @property
    def fetched(self) -> Path:
        """Second names of objects that were just fetched: the third layer of data."""
        return self.state / "fetched"

    @property
    def tree_files(self) -> Path:
        """Tree files and metadata images."""
        return self.state / "trees"

    @property
    def containers(self) -> Path:
        """What containers write, by default."""
        return self.state / "containers"

    @property
    def control(self) -> Path:
        """The socket."""
        return self.run / "control.sock"

    @property
    def sources(self) -> Path:
        """Where trees come from."""
        return self.run / "sources"

    @property
    def mounts(self) -> Path:
        """Records of mounts."""
        return self.run / "mounts"

    @property
    def tree_mounts(self) -> Path:
        """Mounted metadata images."""
        return self.run / "trees"

    @property
    def lazy(self) -> Path:
        """The lazy mount."""
        return self.run / "lazy"

    @property
    def serving(self) -> Path:
        """What the server of the lazy mount remembers."""
        return self.run / "serving"

    @property
    def log(self) -> Path:
        """What the node has to say."""
        return self.run / "log"

    def make_tops(self) -> None:
        """Make STATE and RUN, and nothing in them. Raises what `make` does."""
        for top in (self.state, self.run):
            top.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = top.lstat()
            if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
                raise DeniedError(f"{top} belongs to somebody else")
            top.chmod(0o700)
        if len(os.fsencode(self.control)) > _MOST_SOCKET_NAME:
            raise InvalidError(str(self.run), f"is too long: a socket's name has {_MOST_SOCKET_NAME} bytes at most")

    def make(self) -> None:
        """Make the directories.

        Raises:
            DeniedError: one of them belongs to somebody else.
            InvalidError: RUN is too long a name.
            OSError: they cannot be made.
        """
        self.make_tops()
        made = (self.fetched, self.tree_files, self.containers, self.sources, self.mounts, self.tree_mounts)
        for directory in (*made, self.lazy, self.serving):
            if directory != self.lazy or not directory.is_mount():
                directory.mkdir(mode=0o700, exist_ok=True)
