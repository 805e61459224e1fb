"""What is noted beside an upper: of which image it is, so that it can be read without being mounted.

    DIRECTORY/upper      what the kernel writes
    DIRECTORY/work       the kernel's
    DIRECTORY/info.json  {"image", "repository", "url", "tree", "manifest"}

The file gets its name when it is whole; a crash may leave `PART`, which means nothing. Fields that are not known here
are left alone.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pagepool.digest import Digest
from pagepool.errors import CorruptError, NotFoundError, PagepoolError
from pagepool.linux import sync_directory

if TYPE_CHECKING:
    from pathlib import Path

NAME: Final = "info.json"
PART: Final = f".{NAME}"
UPPER: Final = "upper"
_MOST: Final = 1 << 20


class UpperUnknownError(NotFoundError):
    """There is no upper of a kernel mount there."""

    what = "upper"


@dataclass(frozen=True, slots=True)
class UpperInfo:
    """Of which image an upper is.

    Args:
        repository: where the image is.
        url: of the service.
        tree: digest of its tree.
        image: its reference, as it was mounted; "" if it is no image, but a tree alone.
        manifest: digest of its manifest, where that is known.
    """

    repository: str
    url: str
    tree: Digest
    image: str = ""
    manifest: Digest | None = None

    def write(self, directory: Path, *, durable: bool = True) -> None:
        """Note it in the directory that the upper is in.

        Args:
            durable: whether it is to survive a loss of power, which takes a moment.

        Raises:
            OSError: it cannot be written; nothing of it is left.
        """
        fields = {"image": self.image, "repository": self.repository, "url": self.url, "tree": str(self.tree)}
        if self.manifest is not None:
            fields["manifest"] = str(self.manifest)
        new = directory / PART
        try:
            with new.open("w") as file:
                file.write(json.dumps(fields, indent=1) + "\n")
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            new.rename(directory / NAME)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        if durable:
            sync_directory(directory)


def find_upper(directory: Path) -> Path | None:
    """The upper that a directory is, or has in it; None if neither. Nothing is read."""
    for upper in (directory, directory / UPPER):
        if upper.is_dir() and (upper.parent / NAME).is_file():
            return upper
    return None


def read_upper_info(upper: Path) -> UpperInfo:
    """What is noted of an upper.

    Raises:
        UpperUnknownError: nothing is.
        CorruptError: it cannot be read.
    """
    path = upper.parent / NAME
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(_MOST))
        manifest = fields.get("manifest")
        return UpperInfo(
            str(fields["repository"]),
            str(fields["url"]),
            _parse_tree(str(fields["tree"])),
            str(fields.get("image") or ""),
            Digest.parse(str(manifest)) if manifest else None,
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UpperUnknownError(upper) from error
    except (ValueError, KeyError, TypeError, AttributeError, PagepoolError) as error:
        raise CorruptError("upper", str(upper), f"{NAME} says not of which image it is: {error}") from error


def _parse_tree(text: str) -> Digest:
    """A tree's digest, also as the node names its files: without the algorithm."""
    return Digest.parse(text if ":" in text else f"blake3:{text}")
