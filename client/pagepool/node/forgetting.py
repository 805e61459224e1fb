"""Having overlays forget the files that nobody has open in them, so that what was evicted gives its bytes back.

An overlay keeps each file that it has found, whole and named or not, for as long as it remembers its own inode: until
memory is short, or it is unmounted. Reconfiguring a mount without changing anything makes the kernel drop what its
file system remembers and nobody uses (`reconfigure_super`: `shrink_dcache_sb`). Nothing else on the machine notices;
what is open, mapped or executed stays; the next open finds the object by its name again, or has it fetched.

Objects that were read through the lazy mount, and are whole now, are let go of in the same way: by the overlays, and
then by the lazy mount, whose kernel tells of that (`LetGo` decides when). What some program has open stays.

That also heals an overlay that remembers an object which the scrub has found damaged and replaced.

Only mounts of ours are touched: overlays whose source begins with `pagepool:`. They are found in the mount namespaces
of all processes, and reached through /proc/PID/root. Nothing below them is looked up.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pagepool.linux import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Numbers of the system calls, on every architecture but alpha.
_FSCONFIG: Final = 431
_FSPICK: Final = 433
_FSPICK_CLOEXEC: Final = 1
_SET_FLAG: Final = 0
_RECONFIGURE: Final = 7
_AT_FDCWD: Final = -100
_FIRST_S: Final = 15.0
_SLOWER: Final = 4
_LAST_S: Final = 3600.0
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")

log = logging.getLogger("pagepool.node")


class LetGo:
    """When to have overlays forget the files that they read through the lazy mount though they are whole: some seconds
    after the last one has become that; then ever more seldom, since what a program has open it may have for days.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: frozenset[bytes] = frozenset()
        self._delay_s = self._due = 0.0

    def is_due(self, wholes: frozenset[bytes]) -> bool:
        """Whether to do it now. To be asked again and again; True is said once.

        Args:
            wholes: which objects it is about.
        """
        now = self._clock()
        if wholes - self._known:
            self._delay_s, self._due = _FIRST_S, now + _FIRST_S
        self._known = wholes
        if not wholes or now < self._due:
            return False
        self._delay_s = min(self._delay_s * _SLOWER, _LAST_S)
        self._due = now + self._delay_s
        return True


def let_go(lazy: Path) -> None:
    """Have our overlays, and then the lazy mount, forget what nobody has open.

    Args:
        lazy: where the lazy mount is.
    """
    forget_unused()
    try:
        reconfigure(lazy)
    except OSError as error:
        log.debug("the lazy mount does not forget: %s", error)


def forget_unused(ours: Callable[[str], bool] = lambda source: source.startswith("pagepool:")) -> int:
    """Have every overlay of ours forget what nobody has open in it. Milliseconds for each.

    Args:
        ours: tells by the source of an overlay whether it is one of ours.

    Returns:
        how many did; those that could not be reached are logged.
    """
    done: set[str] = set()
    for device, path in find_overlays(ours):
        if device in done:
            continue
        try:
            status = path.stat()
            # Something else may have been mounted over it.
            if f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}" == device:
                reconfigure(path)
                done.add(device)
        except OSError as error:
            log.debug("the overlay at %s cannot be reached: %s", path, error)
    return len(done)


def reconfigure(path: Path) -> None:
    """Reconfigure the file system that is mounted at a path, changing nothing.

    Raises:
        OSError: it cannot be done.
    """
    try:
        _reconfigure(path, read_only=False)
    except OSError as error:
        # An overlay without an upper insists on being told that it is read-only; one with an upper is never told so.
        if error.errno != errno.EROFS:
            raise
        _reconfigure(path, read_only=True)


def find_overlays(ours: Callable[[str], bool]) -> Iterator[tuple[str, Path]]:
    """Our overlays in all mount namespaces: device (``major:minor``) and a path that leads there; some twice."""
    seen: set[str] = set()
    for name in ("self", *(entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal())):
        process = Path("/proc") / name
        try:
            namespace = str((process / "ns" / "mnt").readlink())
            # Of another root directory of the same namespace not all mounts may be seen.
            key = f"{namespace} {(process / 'root').readlink()}"
            if key in seen:
                continue
            text = os.fsdecode((process / "mountinfo").read_bytes())  # not `read_text`, to which \r ends a line
        except OSError:
            continue
        seen.add(key)
        for line in filter(None, text.split("\n")):
            mount, _, rest = line.partition(" - ")
            fields, about = mount.split(" "), rest.split(" ")
            if about[0] == "overlay" and ours(_plain(about[1])):
                yield fields[2], process / "root" / _plain(fields[4]).lstrip("/")


def _plain(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)


def _reconfigure(path: Path, *, read_only: bool) -> None:
    picked = call("syscall", ctypes.c_long(_FSPICK), _AT_FDCWD, os.fsencode(path), _FSPICK_CLOEXEC)
    try:
        if read_only:
            call("syscall", ctypes.c_long(_FSCONFIG), picked, _SET_FLAG, b"ro", None, 0)
        call("syscall", ctypes.c_long(_FSCONFIG), picked, _RECONFIGURE, None, None, 0)
    finally:
        os.close(picked)
