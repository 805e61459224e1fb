"""Two images of files of this machine: a first version, and a refreshed one as a distribution would rebuild it.

    layer      image 1                   image 2
    system     gzip                      most files equal, some changed or gone; another order and
                                         another dialect of tar: another blob
    runtime    plain tar                 the very same blob
    data       gzip                      as for system

The runtime layer is not compressed, so that a pull shows the tar being rebuilt from recipe and files. What is
changed is decided by a hash of the name: the same files give the same layers.
"""

from __future__ import annotations

import json
import stat
import tarfile
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from zlib import crc32

from pagepool.digest import Digest
from pagepool.layout.source import blob_name
from pagepool.oci import REF_NAME, Descriptor, Platform, encode_index, encode_manifest, mediatypes
from pagepool.samples.layers import Compressor, Packed, Packing, Progress, pack, zlib_gzip
from pagepool.samples.material import Material, Member

FIRST, SECOND = "1", "2"
_THREADS = 2
_CHANGED_PERCENT, _GONE_PERCENT = 4, 1


@dataclass(frozen=True, slots=True)
class Made:
    """An image that was made.

    Args:
        tag: its name in the layout.
        layers: lowest first.
        changed: how many of its files differ from the first image's.
    """

    tag: str
    layers: tuple[Packed, ...]
    changed: int

    @property
    def files(self) -> int:
        """Regular files in all layers."""
        return sum(layer.files for layer in self.layers)

    @property
    def plain_size(self) -> int:
        """Bytes of all layers' tars."""
        return sum(layer.plain_size for layer in self.layers)


def packed_size(material: Material) -> int:
    """About how many plain bytes `make_images` will report to have packed."""
    once = sum(member.size for member in material.runtime)
    return 2 * material.size - once


def make_images(
    material: Material, layout: Path, progress: Progress, gzip: Callable[[], Compressor] = zlib_gzip
) -> tuple[Made, Made]:
    """Write both images into a new OCI layout, under the tags "1" and "2".

    Args:
        material: what to make them of.
        layout: directory, created here.
        progress: told of plain bytes as they are packed, by several threads.
        gzip: begins a gzip stream.

    Raises:
        OSError: the layout cannot be written.
    """
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (layout / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
    first, second = Packing(gzip=gzip), Packing(form=tarfile.PAX_FORMAT, edit=_edit, gzip=gzip)
    with ThreadPoolExecutor(_THREADS) as threads:

        def start(members: Iterable[Member], packing: Packing) -> Future[Packed]:
            return threads.submit(pack, members, blobs, packing, progress)

        system = start(material.system, first), start(_refresh(material.system), second)
        data = start(material.data, first), start(_refresh(material.data), second)
        runtime = start(material.runtime, Packing(compress=False))
        layers = [(system[at].result(), runtime.result(), data[at].result()) for at in (0, 1)]
    changed = sum(_is_changed(member) for part in (material.system, material.data) for member in _refresh(part))
    made = Made(FIRST, layers[0], 0), Made(SECOND, layers[1], changed)
    entries = [_write_image(layout, image) for image in made]
    (layout / "index.json").write_bytes(encode_index(entries).raw)
    return made


def _refresh(members: Iterable[Member]) -> list[Member]:
    """The members of the second version: a few are gone, and the files come in another order."""
    kept = [member for member in members if not (member.is_file and _percentile(member) < _GONE_PERCENT)]
    # Directories still come before what is in them.
    return sorted(kept, key=lambda member: (not stat.S_ISDIR(member.status.st_mode), crc32(member.name.encode())))


def _edit(member: Member, content: bytes) -> bytes:
    """The second version's content: what a new release changes is changed in its middle, and longer."""
    if not _is_changed(member):
        return content
    middle = len(content) // 2
    return content[:middle] + b"\n# changed by pagepool\n" + content[middle:]


def _is_changed(member: Member) -> bool:
    return member.is_file and _percentile(member) >= 100 - _CHANGED_PERCENT


def _percentile(member: Member) -> int:
    return crc32(member.name.encode()) % 100


def _write_image(layout: Path, image: Made) -> Descriptor:
    """Write config and manifest. Returns the entry for the layout's index."""
    config = {
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "author": "pagepool",
        **Platform.local().to_json(),
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in image.layers]},
    }
    described = _write(layout, mediatypes.OCI_CONFIG, json.dumps(config, separators=(",", ":")).encode())
    manifest = encode_manifest(described, [layer.descriptor for layer in image.layers])
    written = _write(layout, manifest.media_type, manifest.raw)
    annotations = {REF_NAME: image.tag}
    return Descriptor(written.media_type, written.digest, written.size, annotations=annotations)


def _write(layout: Path, media_type: str, data: bytes) -> Descriptor:
    descriptor = Descriptor(media_type, Digest.of(data), len(data))
    (layout / blob_name(descriptor.digest)).write_bytes(data)
    return descriptor
