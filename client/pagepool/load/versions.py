"""New versions of an image, which clients push while others read: a base, and one layer that is known beforehand.

All of a version follows from the run, who pushed it and its number: whoever reads one knows each byte that it must
find, down to the digest of its manifest, without having been told.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import dataclass
from functools import cached_property, partial
from random import Random
from typing import TYPE_CHECKING, Any, Final

from pagepool.digest import Digest
from pagepool.errors import InvalidError
from pagepool.oci import Descriptor, Manifest, Reference, encode_manifest, mediatypes, parse_manifest

if TYPE_CHECKING:
    from pagepool.transport import RegistryClient

VERSIONS: Final = "pagepool-load/versions"
"""The repository that they are pushed to."""
STATEMENT: Final = b"pagepool-load/version"
"""The file that says which one it is."""
_SIZES: Final = (1, 4096, 5000, 70_000, 131_072, 400_001)
_EPOCH: Final = "2020-01-01T00:00:00Z"
_SECONDS: Final = 1_577_836_800


@dataclass(frozen=True, slots=True)
class Base:
    """What versions are made of.

    Args:
        repository: where the base is, whose layers are mounted.
        manifest: its bytes.
        config: its bytes.
        replaced: paths of files of the base that every version has with another content.
    """

    repository: str
    manifest: str
    config: str
    replaced: tuple[str, ...] = ()

    def parsed(self) -> Manifest:
        """The manifest.

        Raises:
            InvalidError: it is an index.
        """
        found = parse_manifest(self.manifest.encode())
        if not isinstance(found, Manifest):
            raise InvalidError(self.repository, "is an index, and no image")
        return found


@dataclass(frozen=True)
class Version:
    """One version.

    Args:
        base: that it is made of.
        run: of the load test.
        client: who pushes it.
        number: from 1.
    """

    base: Base
    run: str
    client: int
    number: int

    @property
    def reference(self) -> Reference:
        """The tag that a client moves from version to version."""
        return Reference(VERSIONS, f"{self.run}-{self.client}")

    @property
    def statement(self) -> bytes:
        """The content of `STATEMENT`."""
        return f"{self.run} {self.client} {self.number}\n".encode()

    @cached_property
    def files(self) -> dict[bytes, bytes]:
        """What its layer holds: content by path."""
        random = Random(f"{self.run}/{self.client}/{self.number}")
        found = {STATEMENT: self.statement}
        for size in _SIZES:
            found[b"pagepool-load/%d" % size] = random.randbytes(size)
        for path in self.base.replaced:
            found[os.fsencode(path)] = random.randbytes(random.randrange(1, 20_000))
        return found

    @cached_property
    def layer(self) -> bytes:
        """Its layer, a plain tar."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path, content in self.files.items():
                header = tarfile.TarInfo(os.fsdecode(path))
                header.size, header.mtime = len(content), _SECONDS
                archive.addfile(header, io.BytesIO(content))
        return out.getvalue()

    @cached_property
    def config(self) -> bytes:
        """Its configuration: the base's, with one more layer."""
        document: dict[str, Any] = json.loads(self.base.config)
        document["created"] = _EPOCH
        rootfs = dict(document["rootfs"])
        rootfs["diff_ids"] = [*rootfs["diff_ids"], str(Digest.of(self.layer))]
        document["rootfs"] = rootfs
        if document.get("history"):
            document["history"] = [*document["history"], {"created": _EPOCH, "created_by": "pagepool load"}]
        return json.dumps(document, sort_keys=True).encode()

    @cached_property
    def manifest(self) -> Manifest:
        """Its manifest."""
        base = self.base.parsed()
        docker = base.media_type == mediatypes.DOCKER_MANIFEST
        # Docker's documents have no type for plain layers that everybody takes.
        kind = mediatypes.OCI_LAYER
        config = _describe(base.config.media_type, self.config)
        layers = (*base.layers, _describe(kind, self.layer))
        media_type = mediatypes.DOCKER_MANIFEST if docker else mediatypes.OCI_MANIFEST
        return encode_manifest(config, layers, media_type=media_type)

    def push(self, registry: RegistryClient) -> Digest:
        """Push it, and move the client's tag to it. Returns the digest of its manifest.

        Raises:
            PagepoolError: as the registry's client does.
        """
        manifest, source = self.manifest, self.base.repository
        for blob in self.base.parsed().layers:
            opener = partial(registry.open_raw_blob, source, blob)
            registry.push_blob(VERSIONS, blob, opener, mount_from=source)
        for blob, data in ((manifest.layers[-1], self.layer), (manifest.config, self.config)):
            registry.push_blob(VERSIONS, blob, partial(io.BytesIO, data))
        return registry.put_manifest(VERSIONS, self.reference.target, manifest)


def parse_statement(data: bytes) -> tuple[str, int, int]:
    """Run, client and number of the version that a statement is of.

    Raises:
        ValueError: it is none.
    """
    run, client, number = data.decode("ascii").split()
    return run, int(client), int(number)


def _describe(media_type: str, data: bytes) -> Descriptor:
    return Descriptor(media_type, Digest.of(data), len(data))
