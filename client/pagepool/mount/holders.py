"""Who uses a mount, and that there is none."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from pagepool.errors import BusyError, NotFoundError
from pagepool.mount.mountinfo import mount_points

_HOLDERS_SHOWN: Final = 5


class MountUnknownError(NotFoundError):
    """Nothing of ours is mounted there."""

    what = "mount"

    def __init__(self, path: object) -> None:
        super().__init__(path)
        self.args = (f"nothing of pagepool's is mounted at {path}",)


def in_use(path: Path) -> BusyError:
    """The error that says by what a mount is used: processes, as far as this user can see, and mounts in it."""
    inner = [point.path for point in mount_points() if point.path != path and point.path.is_relative_to(path)]
    holders = find_holders(path) + [f"the mount at {one}" for one in inner[:_HOLDERS_SHOWN]]
    return BusyError(f"{path} is in use" + (f" by {', '.join(holders)}" if holders else ""))


def find_holders(path: Path) -> list[str]:
    """Processes that use something below a path, as far as this user can see: names with numbers, a few of them."""
    holders: list[str] = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and any(target.is_relative_to(path) for target in _used(process)):
            with suppress(OSError):
                name = (process / "comm").read_text(errors="replace").strip()
                holders.append(f"{name} ({process.name})")
        if len(holders) == _HOLDERS_SHOWN:
            break
    return holders


def _used(process: Path) -> list[Path]:
    found: list[Path] = []
    links = [process / name for name in ("cwd", "root", "exe")]
    with suppress(OSError):
        links += (process / "fd").iterdir()
    for link in links:
        with suppress(OSError):
            found.append(link.readlink())
    return found
