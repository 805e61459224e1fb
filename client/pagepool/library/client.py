"""A program's door to images: a service, and this machine's pool.

    with pagepool.Client("http://127.0.0.1:5000") as client:
        with client.image("app:1").open() as root:
            root.read_bytes("/etc/os-release")

Objects are read out of a pool of files: the service's own where it runs on this machine and lets its pool be read,
else one below `directory`, which all programs of this user share. What is in the pool is read without a request, also
while the service is gone.

Everything blocks. Thread-safe. After a fork a child makes a client of its own.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import httpx

from pagepool.content import ObjectCache, measure_sharing
from pagepool.digest import Digest
from pagepool.errors import InvalidError, PagepoolError, ReferenceInvalidError, UnreachableError
from pagepool.image.treefile import TreeFile
from pagepool.image.treestore import TreeStore
from pagepool.library.image import Image, Objects
from pagepool.library.places import PlaceNotes, check_owner
from pagepool.linux.home import home_directory
from pagepool.oci import Reference
from pagepool.pool import Pool, ReadOnlyPool
from pagepool.pool.door import knock
from pagepool.transport import Credentials, RegistryClient, ServiceClient, Session
from pagepool.transport.making import TREE_TIMEOUT_S, Patience
from pagepool.transport.retry import RetryPolicy
from pagepool.transport.trees import TreeClient

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping
    from typing import Any

    from pagepool.content import Sharing
    from pagepool.library.overlay import Overlay
    from pagepool.library.upper import Upper
    from pagepool.oci import Platform
    from pagepool.transport.http import VerifyTypes
    from pagepool.transport.trees import PoolPlace

log = logging.getLogger("pagepool.library")

DEFAULT_URL: Final = "http://127.0.0.1:5000"
_LARGEST_BUDGET: Final = 10 << 30
_SHARE_OF_DISK: Final = 5
_ATTEMPTS: Final = 3


class Client:
    """A service, and the pool that its images are read from.

    Args:
        url: the service's address.
        directory: where this user keeps the pool and tree files; `default_directory` without it.
        budget: most bytes of the pool, from now on and for all who use it; without it what it was, at first
            `default_budget`.
        shared: whether to read the service's own pool where it can be.
        credentials: who we are.
        verify: whether to check the server's certificate.
        timeout_s: about how long a request may take, all attempts together, until something of the answer comes.

    Raises:
        InvalidError: no address of a server, or no time.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        directory: str | Path | None = None,
        budget: int | None = None,
        shared: bool = True,
        credentials: Credentials | None = None,
        verify: VerifyTypes = True,
        timeout_s: float = 30.0,
    ) -> None:
        if timeout_s <= 0:
            raise InvalidError(str(timeout_s), "a timeout is more than no time")
        step_s = timeout_s / _ATTEMPTS
        self.session = Session(
            url,
            credentials=credentials,
            verify=verify,
            timeout=httpx.Timeout(step_s, connect=min(step_s, 10.0), pool=None),
            retry=RetryPolicy(attempts=_ATTEMPTS),
        )
        self.url, self.credentials, self.verify, self.timeout_s = url, credentials, verify, timeout_s
        self.directory = default_directory() if directory is None else Path(directory).absolute()
        self.registry = RegistryClient(self.session)
        self.service = ServiceClient(self.session)
        self.trees = TreeClient(self.session)
        self.budget = budget
        self.shared = shared
        self._files = TreeStore(self.directory / "trees", mapped=True)
        self._places = PlaceNotes(self.directory / "servers")
        self._lock = threading.Lock()
        self._closed = False
        self._repairing: list[Image] | None = None
        self._own: Objects | None = None
        self._theirs: dict[str, Objects] = {}

    def __repr__(self) -> str:
        return f"<Client {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def image(
        self,
        reference: str | Reference,
        *,
        platform: Platform | None = None,
        wait_s: float = 60.0,
        tree_timeout_s: float = TREE_TIMEOUT_S,
        on_making: Callable[[int], object] = lambda _: None,
    ) -> Image:
        """An image of the service.

        Args:
            reference: ``NAME[:TAG][@DIGEST]``; a host in it must be this service's.
            platform: of an index, which image; that of the service's machine without it.
            wait_s: how long to wait while the service still reads its layers.
            tree_timeout_s: how long at most while it puts the image's tree together, if it goes on with that.
            on_making: told again and again for how many seconds it has done so.

        Raises:
            ReferenceInvalidError: no reference, or one of another host.
            ManifestUnknownError, NameUnknownError: there is no such image, or none for the platform.
            PendingError: its layers are not read after `wait_s`, or its tree is not there after `tree_timeout_s`.
            LayerInvalidError, ResponseError: it cannot be mounted.
            UnreachableError: the service cannot be reached.
        """
        parsed = self.parse_reference(reference)
        self._check_open()
        patience = Patience(tree_timeout_s, on_making)
        state = self.trees.resolve(parsed.repository, parsed.target, platform, wait_s, patience)
        self._places.note(self.session.where, state.pool)
        return Image(self, parsed.repository, state.tree, reference=parsed, manifest=state.image, pool=state.pool)

    def tree(self, repository: str, tree: Digest) -> Image:
        """An image by the digest of its tree, without asking the service: it can be opened while the service is gone,
        if its tree file is here."""
        return Image(self, repository, tree, pool=self._places.noted(self.session.where))

    def overlay(self, directory: str | Path) -> Overlay:
        """Take up an overlay that is there, whatever image it lies over. The service is asked only for what is missing.

        Raises:
            OverlayUnknownError: there is none in that directory.
            BusyError: somebody has it open.
            UnreachableError: the image's tree file is not here, and the service cannot be reached.
        """
        from pagepool.library.overlay import open_overlay

        return open_overlay(self, directory)

    def upper(self, directory: str | Path) -> Upper:
        """What a kernel mount wrote, over its image: to read, and to make a layer of. As root; the caller closes it.

        Args:
            directory: the upper, or the one that it is in, with the node's note of which image it is of.

        Raises:
            UpperUnknownError: it is none.
            DeniedError: this is not root, or the upper holds what no mount of the image wrote.
            UnreachableError: the image's tree file is not here, and the service cannot be reached.
        """
        from pagepool.library.upper import open_upper

        return open_upper(self, directory)

    def images(self) -> Iterator[Mapping[str, Any]]:
        """All tagged images of the service: name, tag, digest, platform, size, state."""
        self._check_open()
        return self.service.images()

    def close(self) -> None:
        """End the connections. Images that are open go on reading what is in the pool."""
        self.session.close()
        with self._lock:
            self._closed = True
            opened = [*self._theirs.values(), *([] if self._own is None else [self._own])]
            self._theirs.clear()
            self._own = None
        for objects in opened:
            objects.release()

    def parse_reference(self, reference: str | Reference) -> Reference:
        """A name of an image of this service.

        Raises:
            ReferenceInvalidError: no reference, or one of another host.
        """
        parsed = Reference.parse(reference) if isinstance(reference, str) else reference
        if parsed.host not in (None, self.session.where):
            raise ReferenceInvalidError(str(parsed), f"this client speaks to {self.session.where}")
        return parsed

    def load_tree(self, repository: str, tree: Digest) -> TreeFile:
        """A tree file: the one that is here, or else the service's. The caller closes it."""
        self._check_open()
        found = self._files.load(tree.raw)
        if found is None:
            data = self.trees.fetch(repository, tree)
            self._files.keep(tree.raw, data)
            found = self._files.load(tree.raw)
            if found is None:  # the directory cannot be written
                found = TreeFile(data, tree.raw)
        return found

    def open_pool(self) -> Pool:
        """This user's pool, made if it is not there. The caller closes it."""
        return Pool.open(self.directory / "pool", budget=self.budget, initial=default_budget(self.directory))

    def repair(self, digest: bytes) -> bool:
        """Fetch an object into this user's own pool again, if an image of the service has it.

        The images are asked for once, and looked through each time.

        Returns:
            whether it is there; not if the service cannot be reached.
        """
        try:
            if self._repairing is None:
                self._repairing = list(self._own_images())
            return any(image.fetch_object(digest) for image in self._repairing)
        except PagepoolError as error:
            log.warning("object %s is not fetched again: %s", digest.hex(), error)
            return False

    def _own_images(self) -> Iterator[Image]:
        """All images of the service whose trees can be had, each tree once, over this user's own pool."""
        seen: set[Digest] = set()
        for listed in self.images():
            try:
                found = self.image(Reference(str(listed["name"]), str(listed["tag"])), wait_s=0.0)
            except UnreachableError:
                raise
            except PagepoolError:  # not ready, not an image of files, or removed meanwhile
                continue
            if found.tree not in seen:
                seen.add(found.tree)
                yield Image(self, found.repository, found.tree)

    def measure_sharing(self, present: Container[bytes]) -> Sharing:
        """How much of a pool is of several images: of those whose tree files are here."""
        return measure_sharing(self._files.trees(), present)

    def objects(self, place: PoolPlace | None) -> Objects:
        """The pool to read from: the one that the service named, if it can be read here, else this user's own.

        Raises:
            ValueError: the client is closed.
        """
        if place is not None and self.shared:
            theirs = self._attach(place)
            if theirs is not None:
                return theirs
        with self._lock:
            self._check_open()
            if self._own is None:
                pool = self.open_pool()
                self._own = Objects(ObjectCache(pool, pool.budget), shared=False)
            return self._own.hold()

    def _attach(self, place: PoolPlace) -> Objects | None:
        with self._lock:
            self._check_open()
            known = self._theirs.get(place.id)
            if known is None:
                try:
                    pool = _attach(place)
                except (OSError, PagepoolError, ValueError):  # on another machine, not ours to read, or no path
                    return None
                known = self._theirs[place.id] = Objects(ObjectCache(pool), shared=True)
            return known.hold()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the client is closed")


def default_directory() -> Path:
    """Where pools and tree files are kept when nothing else was said."""
    return Path("/var/cache/pagepool") if os.geteuid() == 0 else home_directory() / ".cache" / "pagepool"


def default_budget(directory: Path) -> int:
    """Most bytes of a pool when nothing else was said: 10 GiB, or a fifth of the file system if that is less."""
    while not directory.exists():
        directory = directory.parent
    status = os.statvfs(directory)
    return min(_LARGEST_BUDGET, status.f_blocks * status.f_frsize // _SHARE_OF_DISK)


def _attach(place: PoolPlace) -> ReadOnlyPool:
    """A service's pool: by its door, if it has one, so that nothing here can write to it; else by its path."""
    check_owner(place.path)
    try:
        descriptor = knock(place.path)
    except OSError:
        return Pool.attach(place.path, place.id)
    try:
        return Pool.attach(Path(f"/proc/self/fd/{descriptor}"), place.id)
    finally:
        os.close(descriptor)
