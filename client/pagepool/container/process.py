"""What `run_container` needs of a runtime, and how a container is given its input and output."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from pagepool.errors import CommandRefusedError, CommandUnknownError, ContainerError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
_ERRORS: Final = {NOT_EXECUTABLE: CommandRefusedError, NOT_FOUND: CommandUnknownError}


def container_error(reason: str, code: int) -> ContainerError:
    """The error that stands for docker's exit code."""
    return _ERRORS.get(code, ContainerError)(reason)


def not_found(name: str, search: str) -> str:
    """What is said of a program that is in none of the directories of $PATH."""
    where = f"{name}: not found in $PATH ({search})"
    return f"{where}; options stand before the image, or the container" if name.startswith("-") else where


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a container, or of a program in one that runs.

    Args:
        id: of the container.
        bundle: directory with ``config.json`` in it, for whatever else the runtime keeps, too.
        config: what is in it.
        terminal: whether the container gets a terminal.
        interactive: whether it gets our input.
        direct: whether ours is a terminal, and the container is to have all that is typed there.
    """

    id: str
    bundle: Path
    config: Mapping[str, Any]
    terminal: bool
    interactive: bool
    direct: bool


class Running(Protocol):
    """A container being run. Used by one thread, and closed by it at the end, whatever happened."""

    pid: int
    """Its first process, as the host sees it; 0 until it is known."""

    started: bool
    """Whether the program has begun."""

    status: int | None
    """A descriptor to be polled, and `on_status` called; None: `on_status` is to be called now and then."""

    master: int | None
    """The other side of the container's terminal, if we are to carry its bytes."""

    child: int
    """Our own child, which ends with the container's exit code; signals go to it."""

    def on_status(self) -> None:
        """Take notice of what happened. Does not block."""

    def send(self, number: int) -> None:
        """Have the program get a signal."""

    def kill(self) -> None:
        """End everything in the container."""

    def finish(self) -> int:
        """The exit code, once `child` has ended.

        Raises:
            ContainerError: the program was never started; its subclasses say what of it is missing.
        """

    def close(self) -> None:
        """Leave nothing behind; end what still runs."""


def standard_input(task: Task) -> int | None:
    """What to give `subprocess` as input where there is no terminal."""
    return None if task.interactive else subprocess.DEVNULL


def exit_code(returncode: int) -> int:
    """What a shell shows for a child that ended so."""
    return returncode if returncode >= 0 else 128 - returncode


def close_all(*descriptors: int | None) -> None:
    """Close what is open."""
    for one in descriptors:
        if one is not None:
            os.close(one)
