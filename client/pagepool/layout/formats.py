"""Which format a path has, or is to have; the only module that decides it.

A path may carry the name of an image in the file after a colon: ``PATH:NAME``. A path that exists as it
stands has no name in it, whatever colons it holds. A format may be said before it, as skopeo and podman have it:
``oci-archive:PATH:NAME``.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from pagepool.errors import ImageInvalidError, InvalidError
from pagepool.layout.dockersink import DockerArchiveSink
from pagepool.layout.files import DirectoryFiles, TarFiles
from pagepool.layout.inflate import inflate
from pagepool.layout.interface import ImageSink, ImageSource
from pagepool.layout.publish import translated
from pagepool.layout.sink import LayoutSink, OciArchiveSink
from pagepool.layout.source import DockerArchiveSource, LayoutSource
from pagepool.oci.verify import CHUNK_SIZE

Format = Literal["oci", "oci-archive", "docker-archive"]
FORMATS: tuple[Format, ...] = ("oci", "oci-archive", "docker-archive")

STANDARD_INPUT = "-"
# What else these programs have before a colon. No file has it.
_FOREIGN = ("docker", "docker-daemon", "containers-storage", "dir", "ostree", "sif", "tarball")
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, slots=True)
class Location:
    """Where an image is, or is to be.

    Args:
        path: a file or directory; `STANDARD_INPUT`.
        name: what it is called there; None if that was not said.
        form: the format that was said; None if none was.
    """

    path: Path
    name: str | None = None
    form: Format | None = None


def parse_location(text: str) -> Location:
    """Read ``[FORMAT:]PATH[:NAME]``.

    A path that exists, as it stands or up to a colon, is meant before any format. Of several that exist, the longest
    is; if none does, the first colon separates path and name, as in skopeo.

    Raises:
        InvalidError: it says another program's kind of place, or no path.
    """
    before, _, rest = text.partition(":")
    if _split(text).path.exists() or text == STANDARD_INPUT:
        return _split(text)
    if before in _FOREIGN:
        kinds = ", ".join(f"{form}:PATH" for form in FORMATS)
        raise InvalidError(text, f"{before}: is not known here; name a file or a directory (PATH, {kinds})")
    for form in FORMATS:
        if before == form and text != form:
            if not rest:
                raise InvalidError(text, "no path is named")
            found = _split(rest)
            return Location(found.path, found.name, form)
    return _split(text)


def _split(text: str) -> Location:
    if Path(text).exists() or text == STANDARD_INPUT:
        return Location(Path(text))
    colons = [position for position, character in enumerate(text) if character == ":" and position]
    existing = [position for position in reversed(colons) if Path(text[:position]).exists()]
    if not colons:
        return Location(Path(text))
    at = (existing or colons)[0]
    return Location(Path(text[:at]), text[at + 1 :] or None)


def choose_format(path: Path) -> Format:
    """The format to write when none was asked for: an archive for ``*.tar``, else a layout."""
    return "oci-archive" if path.suffix == ".tar" and not path.is_dir() else "oci"


def open_sink(path: Path, form: Format, name: str) -> ImageSink:
    """Open a file or directory to write one image, or one index, into; the caller closes it.

    Args:
        path: the directory of a layout, or the file of an archive.
        form: what to write.
        name: what the image is to be called there; "" for no name.

    Raises:
        ImageInvalidError: something else is there.
    """
    if not path.absolute().parent.is_dir():
        raise ImageInvalidError(str(path), f"there is no directory {path.absolute().parent}")
    path = path.absolute()
    if form == "oci":
        return LayoutSink(path, name)
    return OciArchiveSink(path, name) if form == "oci-archive" else DockerArchiveSink(path, name)


def open_source(path: Path, name: str | None) -> ImageSource:
    """Open whatever image file this is; the caller closes it.

    Args:
        path: a layout, or an archive, compressed or not; ``-`` for an archive on standard input.
        name: which image in it; None if it has only one.

    Raises:
        ImageInvalidError: it is none of these, is damaged, or has no such image.
    """
    if path.is_dir():
        if not (path / "oci-layout").exists():
            raise ImageInvalidError(str(path), "is a directory without an OCI layout")
        return LayoutSource(DirectoryFiles(path), name)
    return _open_archive(TarFiles(_open_plain(path), str(path)), name)


def _open_archive(files: TarFiles, name: str | None) -> ImageSource:
    try:
        layout, docker = files.size("oci-layout") is not None, files.size("manifest.json") is not None
        if not layout and not docker:
            raise ImageInvalidError(files.where, "is neither an OCI nor a docker archive")
        if layout and not docker:
            return LayoutSource(files, name)
        if layout and (source := _whole_layout(files, name)):
            return source
        return DockerArchiveSource(files, name)
    except BaseException:
        files.close()
        raise


def _whole_layout(files: TarFiles, name: str | None) -> LayoutSource | None:
    """The layout in an archive that is both, unless only its docker part can be used.

    `docker save` writes an index of all platforms, with the blobs of one; and names images there as they were
    asked for, where `manifest.json` has their tags.
    """
    try:
        source = LayoutSource(files, name)
        return source if source.is_complete() else None
    except ImageInvalidError:
        return None


def _open_plain(path: Path) -> BinaryIO:
    """Open an archive as a plain, seekable file: what is compressed or piped in goes through a temporary file."""
    file = sys.stdin.buffer if str(path) == STANDARD_INPUT else _open(path)
    try:
        if file.seekable():
            head = file.read(4)
            file.seek(0)
            if not head.startswith(_COMPRESSED):
                return file
        spool = tempfile.TemporaryFile(prefix="pagepool-")  # noqa: SIM115 - it is returned, and closed by TarFiles
        try:
            with translated(Path(tempfile.gettempdir()) / "spool"):
                for plain in inflate(iter(lambda: file.read(CHUNK_SIZE), b""), str(path)):
                    spool.write(plain)
                spool.seek(0)
        except BaseException:
            spool.close()
            raise
    except BaseException:
        file.close()
        raise
    file.close()
    return spool


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise ImageInvalidError(str(path), "does not exist") from None
    except OSError as error:
        raise ImageInvalidError(str(path), f"cannot be read: {error.strerror}") from None
