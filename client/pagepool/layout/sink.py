"""Writing OCI layouts: directories, new or added to, and tars of them (`oci-archive`).

A new layout or archive is built beside its place and appears whole, by one rename. An existing layout keeps
what it has: blobs that are there with the right size are not written again, each new one appears when it is
whole and verified, and the index is replaced last, under a lock, so that an interrupted addition changes
nothing that a reader sees.

Follows image-spec v1.1.0 `image-layout.md`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pagepool.errors import ImageInvalidError
from pagepool.layout.files import DirectoryFiles, read_document
from pagepool.layout.interface import Progress
from pagepool.layout.publish import drop_stage, dropping, make_stage, published, sync_directory, translated
from pagepool.layout.source import blob_name, check_layout
from pagepool.oci import REF_NAME, Descriptor, Index, Manifest, Readable, VerifyingReader
from pagepool.oci.fields import load_object
from pagepool.oci.mediatypes import OCI_INDEX
from pagepool.oci.verify import CHUNK_SIZE

MARKER = b'{"imageLayoutVersion":"1.0.0"}'


class LayoutSink:
    """An OCI layout in a directory, made or added to. `put_blob` is thread-safe.

    Args:
        path: the directory; may be missing or empty.
        name: what the image is called in the layout's index; "" for no name. A name that is there moves.

    Raises:
        ImageInvalidError: something else is there.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name
        self._new = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        if self._new:
            self._place = make_stage(path)
            with dropping(self._place), published(self._place / "oci-layout") as file:
                file.write(MARKER)
        else:
            if not path.is_dir():
                raise ImageInvalidError(str(path), "exists, and is not an OCI layout")
            check_layout(DirectoryFiles(path))
            self._place = path

    def begin(self, root: Manifest | Index) -> None:
        """A layout holds everything."""

    def put_blob(self, blob: Descriptor, open_content: Callable[[], Readable], progress: Progress) -> bool:
        """Take a blob, unless a file of its size is there."""
        path = self._place / blob_name(blob.digest)
        if path.is_file() and path.stat().st_size == blob.size:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with published(path) as file, VerifyingReader(open_content(), blob) as content:
            copy_content(content, file, progress)
        return True

    def put_manifest(self, descriptor: Descriptor, manifest: Manifest | Index) -> None:
        """Take a manifest or index."""
        path = self._place / blob_name(descriptor.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        with published(path) as file:
            file.write(manifest.raw)

    def commit(self, descriptor: Descriptor, root: Manifest | Index, /) -> None:
        """Take the root and name it in the index."""
        self.put_manifest(descriptor, root)
        blobs = self._place / "blobs"
        for directory in (*blobs.iterdir(), blobs):
            sync_directory(directory)
        with _locked(self._place):
            document = self._read_index()
            document["manifests"] = plan_entries(document.get("manifests") or [], descriptor, self._name)
            with published(self._place / "index.json") as file:
                file.write(json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode())
        sync_directory(self._place)
        if self._new:
            self._publish()

    def close(self) -> None:
        """Remove what was not committed, if the layout is new."""
        if self._new:
            drop_stage(self._place)

    def _read_index(self) -> dict[str, Any]:
        files = DirectoryFiles(self._place)
        if files.size("index.json") is None:
            return {"schemaVersion": 2, "mediaType": OCI_INDEX}
        fields = load_object(read_document(files, "index.json"), "index.json", ImageInvalidError)
        list(fields.objects("manifests"))  # refuse what is not a list of objects
        return dict(fields.fields)

    def _publish(self) -> None:
        try:
            self._place.rename(self._path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise ImageInvalidError(str(self._path), "appeared while the image was written") from None
        sync_directory(self._path.parent)


class OciArchiveSink:
    """An OCI layout in a tar file, which replaces what is there. `put_blob` is thread-safe.

    Args:
        path: the file.
        name: what the image is called in the layout's index; "" for no name.

    Raises:
        ImageInvalidError: a directory is there.
    """

    def __init__(self, path: Path, name: str) -> None:
        if path.is_dir():
            raise ImageInvalidError(str(path), "is a directory; an archive is a file")
        self._path = path
        self._stage = make_stage(path)
        with dropping(self._stage):
            self._layout = LayoutSink(self._stage / "layout", name)

    def begin(self, root: Manifest | Index) -> None:
        """A layout holds everything."""

    def put_blob(self, blob: Descriptor, open_content: Callable[[], Readable], progress: Progress) -> bool:
        """Take a blob."""
        return self._layout.put_blob(blob, open_content, progress)

    def put_manifest(self, descriptor: Descriptor, manifest: Manifest | Index) -> None:
        """Take a manifest or index."""
        self._layout.put_manifest(descriptor, manifest)

    def commit(self, descriptor: Descriptor, root: Manifest | Index, /) -> None:
        """Take the root, and write the archive."""
        self._layout.commit(descriptor, root)
        write_archive(self._stage / "layout", self._path)

    def close(self) -> None:
        """Remove all that is not the archive."""
        self._layout.close()
        drop_stage(self._stage)


def plan_entries(current: list[Any], descriptor: Descriptor, name: str) -> list[Any]:
    """The entries of a layout's index after an image was added. Pure.

    An entry of the same name goes, and so does a nameless one for the same content; others stay as they are.

    Args:
        current: the entries, as JSON.
        descriptor: the image; annotations of the index it came from are not kept.
        name: its name, or "".
    """
    entry = descriptor.to_json()
    entry.pop("annotations", None)
    if name:
        entry["annotations"] = {REF_NAME: name}
    kept = []
    for other in current:
        other_name = (other.get("annotations") or {}).get(REF_NAME, "")
        same = other.get("digest") == entry["digest"]
        if same and not name:
            return current
        if not ((name and other_name == name) or (same and not other_name)):
            kept.append(other)
    return [*kept, entry]


def copy_content(source: VerifyingReader, target: BinaryIO, progress: Progress) -> None:
    """Copy verified content to its end. If it fails, `progress` is told to take everything back."""
    count = 0
    try:
        for chunk in source:
            target.write(chunk)
            count += len(chunk)
            progress(len(chunk))
    except Exception:
        progress(-count)
        raise


def write_archive(directory: Path, path: Path) -> None:
    """Write the files of a directory into a tar, in a fixed order, without owners or times.

    Each file is removed when it is in the archive, so that the content is not on disk twice for long.

    Args:
        directory: what to write; it is taken apart.
        path: the archive, replaced when it is whole.
    """
    with published(path) as file:
        names = sorted((item.relative_to(directory) for item in directory.rglob("*")), key=_archive_order)
        for name in names:
            info, item = tarfile.TarInfo(name.as_posix()), directory / name
            info.mode = 0o755 if item.is_dir() else 0o644
            if item.is_dir():
                info.type = tarfile.DIRTYPE
                file.write(info.tobuf(tarfile.GNU_FORMAT))
                continue
            info.size = item.stat().st_size
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            with item.open("rb") as content, translated(path):
                while chunk := content.read(CHUNK_SIZE):
                    file.write(chunk)
            file.write(bytes(-info.size % 512))
            item.unlink()
        file.write(bytes(1024))
    sync_directory(path.parent)


def _archive_order(name: Path) -> tuple[bool, str]:
    # The small documents first: a reader that streams learns what it reads.
    return name.parts[0] == "blobs", name.as_posix()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other processes of ours from rewriting the index at the same time."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
