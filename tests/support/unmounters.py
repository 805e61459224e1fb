"""Two who unmount the same place at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pagepool.errors import PagepoolError
from pagepool.linux import mounts
from pagepool.mount.records import default_directory

if TYPE_CHECKING:
    import pytest


def unmount_at_once(monkeypatch: pytest.MonkeyPatch, unmount: Callable[[], object]) -> list[PagepoolError | OSError]:
    """Unmount; and once more from another thread, when the first one has looked and is about to call the kernel.

    It goes on when the other one has ended, or waits for its turn.

    Returns:
        the errors of both.
    """
    failed: list[PagepoolError | OSError] = []
    begun = mounts.unmount

    def try_it() -> None:
        try:
            unmount()
        except (PagepoolError, OSError) as error:
            failed.append(error)

    second = threading.Thread(target=try_it)

    def interrupted(target: str | Path, flags: int = 0) -> None:
        monkeypatch.setattr(mounts, "unmount", begun)
        second.start()
        while second.is_alive() and not _somebody_waits():
            second.join(0.01)
        begun(target, flags)

    monkeypatch.setattr(mounts, "unmount", interrupted)
    try_it()
    second.join()
    return failed


def _somebody_waits() -> bool:
    file = default_directory() / "turns"
    locks = Path("/proc/locks").read_text().splitlines()
    return file.exists() and any("->" in line and f":{file.stat().st_ino} " in line for line in locks)
