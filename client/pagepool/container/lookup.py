"""Looks for a program in a container's root before runc is asked to start it: `check_program`.

runc says why it could not start a program on the program's standard error, whoever reads that, and we say it in our own
way. So runc is not asked where it is certain that the program is not there, or cannot be executed. Whatever is not
certain is left to runc.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from typing import TYPE_CHECKING, Any, Final

from pagepool.container.linux import open_in_root
from pagepool.container.process import NOT_EXECUTABLE, NOT_FOUND, container_error, not_found

if TYPE_CHECKING:
    from collections.abc import Mapping

_KERNELS: Final = ("/dev/", "/proc/", "/sys/")
"""What is there is made for the container, or means another thing to it."""


def check_program(root: int, process: Mapping[str, Any]) -> None:
    """Refuse a program that cannot be started.

    Args:
        root: of the container, with nothing of the user's to be mounted in it yet.
        process: of runtime-spec.

    Raises:
        CommandUnknownError: it is not there.
        CommandRefusedError: it is a directory, or nobody may execute it.
    """
    name: str = process["args"][0]
    search = next((text[5:] for text in process["env"] if text.startswith("PATH=")), "")
    directories = [""] if "/" in name else search.split(":")
    paths = [posixpath.join("/", process["cwd"], one, name) for one in directories]
    if any(f"/{posixpath.normpath(path).strip('/')}".startswith(_KERNELS) for path in paths):
        return
    try:
        modes = [mode for mode in (_mode(root, path) for path in paths) if mode is not None]
    except OSError:
        return
    if not modes:
        raise container_error(f"{name}: no such file" if "/" in name else not_found(name, search), NOT_FOUND)
    if "/" not in name:
        return
    if stat.S_ISDIR(modes[0]):
        raise container_error(f"{name}: {os.strerror(errno.EISDIR)}", NOT_EXECUTABLE)
    if stat.S_ISREG(modes[0]) and not modes[0] & 0o111:
        raise container_error(f"{name}: {os.strerror(errno.EACCES)}", NOT_EXECUTABLE)


def _mode(root: int, path: str) -> int | None:
    """What is at a path, a symlink itself; None: nothing is."""
    try:
        place = open_in_root(root, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    mode = os.fstat(place).st_mode
    os.close(place)
    return mode
