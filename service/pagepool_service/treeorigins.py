"""What a tree was made of, as a value, as text, and as the name of files about it.

The text is `MANIFEST` for all layers of an image, as it always was, and `COUNT/MANIFEST` for the first so many: a
version that knows only the former takes the latter for a torn line, and a line that was torn is never another one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import InvalidError

_COUNT = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class TreeOrigin:
    """The layers of an image, or the first so many of them.

    Args:
        manifest: digest of the image's manifest.
        first: how many layers, counted from the lowest; None: all of them.
    """

    manifest: Digest
    first: int | None = None

    @classmethod
    def parse(cls, text: str) -> TreeOrigin:
        """Parse what `str` gives.

        Raises:
            InvalidError: the text is none; it names the text.
        """
        count, slash, manifest = text.rpartition("/")
        if not slash:
            return cls(Digest.parse(text))
        if not _COUNT.fullmatch(count):
            raise InvalidError(count[:32], "is no number of layers")
        return cls(Digest.parse(manifest), int(count))

    @property
    def file_name(self) -> str:
        """The name of a file about it: that of its manifest, and `-COUNT`."""
        name = blake3_raw(str(self.manifest).encode()).hex()
        return name if self.first is None else f"{name}-{self.first}"

    def __str__(self) -> str:
        return str(self.manifest) if self.first is None else f"{self.first}/{self.manifest}"
