"""Images out of changes: a layer on top of a parent, with a config and a manifest of its own."""

from pagepool.commit.image import CommitOptions, CommittedImage, UnchangedError, build_commit
from pagepool.commit.instructions import Instruction, InstructionInvalidError, parse_instruction

__all__ = [
    "CommitOptions",
    "CommittedImage",
    "UnchangedError",
    "build_commit",
    "Instruction",
    "InstructionInvalidError",
    "parse_instruction",
]
