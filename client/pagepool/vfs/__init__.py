"""File-system semantics: inodes, paths confined to the root, files; read-only images and writable overlays alike."""

from pagepool.vfs.file import RawFile
from pagepool.vfs.interface import (
    PAGE_SIZE,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    ROOT,
    XATTR_CREATE,
    XATTR_REPLACE,
    Attributes,
    Changes,
    Content,
    Entry,
    FileSystem,
    Usage,
    WritableFileSystem,
    fail,
)
from pagepool.vfs.paths import resolve, resolve_parent
from pagepool.vfs.rootfs import DirEntry, MutableRootfs, Rootfs
from pagepool.vfs.treefs import TreeFileSystem

__all__ = [
    "ROOT",
    "PAGE_SIZE",
    "RENAME_NOREPLACE",
    "RENAME_EXCHANGE",
    "RENAME_WHITEOUT",
    "XATTR_CREATE",
    "XATTR_REPLACE",
    "Attributes",
    "Changes",
    "Content",
    "Entry",
    "FileSystem",
    "TreeFileSystem",
    "Rootfs",
    "MutableRootfs",
    "DirEntry",
    "RawFile",
    "resolve",
    "resolve_parent",
    "Usage",
    "WritableFileSystem",
    "fail",
]
