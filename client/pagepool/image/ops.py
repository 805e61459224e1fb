"""The operations of a recipe: what to write, in order, to have the tar again."""

from __future__ import annotations

from typing import Final, NamedTuple

LITERAL: Final = 0
OBJECT: Final = 1
SLICE: Final = 2


class Op(NamedTuple):
    """One operation. A tuple, not a dataclass: recipes have millions, and rebuilding reads them all.

    Args:
        kind: `LITERAL`: the bytes themselves; `OBJECT`: a whole object; `SLICE`: part of an object (sparse
            members, whose object is the expanded file). A `SLICE` of no bytes marks the object of a file that
            is one hole.
        data: the bytes of a literal; else the raw BLAKE3 digest of the object, 32 bytes.
        offset: where a slice begins in its object, else 0.
        size: bytes of the tar that the operation stands for.
    """

    kind: int
    data: bytes | memoryview
    offset: int
    size: int
