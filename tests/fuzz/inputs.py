"""Where inputs are kept: seeds, and what once failed."""

from __future__ import annotations

from hashlib import blake2s
from pathlib import Path

_HERE = Path(__file__).parent
CORPUS = _HERE / "corpus"
REGRESSIONS = _HERE / "regressions"


def read(kind: Path, target: str) -> dict[str, bytes]:
    """The inputs of a target, by file name."""
    return {path.name: path.read_bytes() for path in sorted((kind / target).glob("*")) if path.is_file()}


def keep(directory: Path, data: bytes) -> Path:
    """Write an input down, under a name that is made of it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / blake2s(data, digest_size=8).hexdigest()
    path.write_bytes(data)
    return path
