"""Which layers need not be unpacked: those of an image that a pagepool service has, and a node can mount.

containerd says what it unpacks by labels: the reference of the image, the digest of its manifest, and the *chain ID* of
the layers up to this one. The manifest and the configuration are asked of the service; the chain IDs that follow from
these must be what containerd says. So nobody gets another image's files for a chain, whatever a tag means meanwhile.

Thread-safe.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.digest import Digest
from pagepool.errors import InvalidError
from pagepool.oci import Reference, parse_config
from pagepool.snapshotter.catalogue import ImageRecord
from pagepool.transport import RegistryClient, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pagepool.transport import Credentials

REFERENCE: Final = "containerd.io/snapshot/cri.image-ref"
MANIFEST: Final = "containerd.io/snapshot/cri.manifest-digest"
_KEPT: Final = 256

log = logging.getLogger("pagepool.snapshotter")


@dataclass(frozen=True, slots=True)
class Server:
    """A pagepool service.

    Args:
        name: how references name it, ``host[:port]``.
        url: its address.
        credentials: who we are there, by repository.
        verify: whether, and by whom, its certificate is vouched for: see `pagepool.transport.trust`.
    """

    name: str
    url: str
    credentials: Callable[[str], Credentials]
    verify: bool | str = True

    def connect(self, repository: str) -> Session:
        """A session for a repository. The caller closes it."""
        return Session(self.url, credentials=self.credentials(repository), verify=self.verify)


@dataclass(frozen=True, slots=True)
class Claim:
    """That a chain of layers is that of an image.

    Args:
        image: of which image.
        depth: how many of its layers.
    """

    image: ImageRecord
    depth: int


class Claims:
    """Finds out which image a chain of layers is of.

    Args:
        servers: the services whose images can be mounted.
    """

    def __init__(self, servers: Iterable[Server]) -> None:
        self.servers = {server.name: server for server in servers}
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str, str], tuple[str, ...]] = OrderedDict()

    def find(self, target: str, parent: str | None, labels: Mapping[str, str]) -> Claim | None:
        """The image of a chain; None if it is none of a service's here.

        Args:
            target: chain ID of the layers, this one included.
            parent: chain ID of those below it; None if there are none.
            labels: what containerd says of it.

        Raises:
            PagepoolError: it seems to be one, and the service cannot be asked, or says otherwise.
        """
        text, manifest = labels.get(REFERENCE, ""), labels.get(MANIFEST, "")
        if not text or not manifest:
            return None
        reference = Reference.parse(text)
        server = self.servers.get(reference.host or "")
        if server is None:
            return None
        chains = self._chains(server, reference.repository, str(Digest.parse(manifest)))
        if target not in chains:
            raise InvalidError(target, f"it is no chain of layers of {reference.repository}@{manifest}")
        depth = chains.index(target) + 1
        if parent != (chains[depth - 2] if depth > 1 else None):
            raise InvalidError(parent, f"it is not what {target} is upon in {reference.repository}@{manifest}")
        return Claim(ImageRecord(server.name, reference.repository, manifest, len(chains), text), depth)

    def _chains(self, server: Server, repository: str, manifest: str) -> tuple[str, ...]:
        """The chain IDs of an image, of its lowest layer first. What was seen is not asked for again."""
        key = (server.name, repository, manifest)
        with self._lock:
            found = self._known.get(key)
        if found is not None:
            return found
        session = server.connect(repository)
        try:
            client = RegistryClient(session)
            config = parse_config(client.get_config(repository, manifest))
        finally:
            session.close()
        found = chain_ids(config.diff_ids)
        with self._lock:
            self._known[key] = found
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found


def chain_ids(diff_ids: Sequence[Digest]) -> tuple[str, ...]:
    """What the OCI image specification calls the ChainID, of each layer with those below it, the lowest first."""
    found: list[str] = []
    for diff_id in diff_ids:
        found.append(f"{Digest.of(f'{found[-1]} {diff_id}'.encode())}" if found else str(diff_id))
    return tuple(found)
