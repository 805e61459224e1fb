"""A real overlay over a real pool, as a node stacks them, with a lazy step that is scripted: what a container looks up
is taken from memory, put into the pool, and given its second name.

Everything is below one directory:

    pool/ fetched/ run/       the node's
    lazy/                     a FUSE mount with `fetch` and `fail`, served by threads of this process
    meta/                     the tree: files without data, as the metadata image has them
    at/NAME/                  the overlays
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
import subprocess
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.mount.device import MountOptions, mount_device, unmount_device
from pagepool.mount.fuse.protocol import (
    ATTR_OUT,
    BUFFER_SIZE,
    ENTRY_OUT,
    IN_HEADER,
    STATFS_OUT,
    InitFlag,
    Opcode,
    encode_error,
    encode_header,
    encode_init,
    parse_init,
    parse_name,
)
from pagepool.node.forgetting import find_overlays, forget_unused
from pagepool.pool import Custody, Pool
from pagepool.pool.layout import object_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.pool.helpers import Thing

_ROOT, _FETCH, _FAIL = 1, 2, 3
_libc = ctypes.CDLL(None, use_errno=True)


class ScriptedNode:
    """The directories, a pool with its custody, and the lazy mount, served.

    Args:
        root: see the module.
        budget: of the pool.
        forgetting: whether overlays are asked to forget things before something is evicted.
    """

    def __init__(self, root: Path, budget: int, *, forgetting: bool = False) -> None:
        self.root = root
        self.things: dict[bytes, Thing] = {}
        self.names: dict[str, Thing] = {}
        self.brought: list[bytes] = []
        self.refusals: list[str] = []
        self.source = f"pagepool:test#{secrets.token_hex(6)}"
        self.later_s = 0.0  # that the clock is ahead
        self.mounted: set[bytes] = set()
        for name in ("fetched", "run", "lazy", "meta", "at"):
            (root / name).mkdir()
        self.custody = Custody(
            *(root / "run", root / "fetched", self.mounted.__contains__),
            release=self.forget if forgetting else lambda: None,
            fresh_s=5.0,
            clock=lambda: time.monotonic() + self.later_s,
        )
        self.pool = Pool.open(root / "pool", budget=budget, durable=True, custody=self.custody)
        self._overlays: list[Path] = []
        self._device = mount_device(root / "lazy", MountOptions("scripted", read_only=True))
        self._threads = ThreadPoolExecutor(4)
        self._reader = threading.Thread(target=self._serve, daemon=True)
        self._reader.start()

    def add(self, name: str, one: Thing) -> None:
        """A file of the tree."""
        self.things[one.digest] = self.names[name] = one
        self.mounted.add(one.digest)
        path = self.root / "meta" / name
        path.touch(mode=0o755)
        os.truncate(path, one.size)
        os.setxattr(path, "trusted.overlay.metacopy", b"")
        os.setxattr(path, "trusted.overlay.redirect", f"/{object_name(one.digest)}".encode())

    def object(self, name: str) -> Path:
        """The object of a file, under its first name."""
        return self.root / "pool" / "objects" / object_name(self.names[name].digest)

    def second(self, name: str) -> Path:
        """The object of a file, under its second name."""
        return self.root / "fetched" / object_name(self.names[name].digest)

    def overlay(self, name: str, *, upper: bool = False) -> Path:
        """Mount the tree once more, read-only, or with a directory for what is written."""
        at, root = self.root / "at" / name, self.root
        at.mkdir()
        layers = f"{root}/meta::{root}/pool/objects::{root}/lazy/fetch::{root}/fetched::{root}/lazy/fail"
        data = f"lowerdir={layers},metacopy=on,redirect_dir=on"
        if upper:
            for kind in ("upper", "work"):
                (root / f"{kind}-{name}").mkdir()
            data += f",upperdir={root}/upper-{name},workdir={root}/work-{name}"
        if _libc.mount(self.source.encode(), os.fsencode(at), b"overlay", 0 if upper else 1, data.encode()):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), data)
        self._overlays.append(at)
        return at

    def bring(self, digest: bytes) -> bool:
        """What the node's sources do."""
        one = self.things[digest]
        self.brought.append(digest)
        file = self.pool.put(digest, one.data)
        if file is None:
            return self._refuse("the pool does not take it")
        with file:  # what is open is not evicted meanwhile
            return self.custody.link(digest) or self._refuse("the pool does not have it")

    def _refuse(self, reason: str) -> bool:
        about = self.pool.stats()
        self.refusals.append(f"{reason}; {self.custody.pinned=} {self.custody.fresh=} {about}")
        return False

    def forget(self) -> int:
        """Have the overlays forget what nobody has open."""
        return forget_unused(self.source.__eq__)

    def is_mounted(self) -> bool:
        """Whether an overlay is left, here or in a mount namespace that somebody made meanwhile."""
        return any(True for _ in find_overlays(self.source.__eq__))

    def unmount(self, at: Path) -> None:
        """Unmount an overlay."""
        subprocess.run(["umount", str(at)], check=True)
        self._overlays.remove(at)

    def close(self) -> None:
        """Unmount everything."""
        for at in self._overlays:
            subprocess.run(["umount", "--lazy", str(at)], check=False)
        with suppress(OSError):
            unmount_device(self.root / "lazy", detach=True, abort=True)
        os.close(self._device)
        self._reader.join()
        self._threads.shutdown()
        self.pool.close()

    # -- the lazy mount ----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, BUFFER_SIZE)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return
            self._threads.submit(self._answer, request)

    def _answer(self, request: bytes) -> None:
        _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
        if opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
            return
        try:
            body = self._reply(opcode, node, memoryview(request)[IN_HEADER.size :])
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOENT, errno.EIO):
                self._refuse(repr(error))
            answer = encode_error(unique, error.errno or errno.EIO)
        except Exception:  # noqa: BLE001 - it is shown when the test fails
            self._refuse(traceback.format_exc())
            answer = encode_error(unique, errno.EIO)
        else:
            answer = encode_header(unique, len(body)) + body
        with suppress(OSError):
            os.write(self._device, answer)

    def _reply(self, opcode: int, node: int, body: memoryview) -> bytes:
        if opcode == Opcode.INIT:
            return encode_init(38, parse_init(body).max_readahead, InitFlag.PARALLEL_DIROPS, background=12)
        if opcode == Opcode.GETATTR:
            return ATTR_OUT.pack(1000, 0, 0, *_directory(node))
        if opcode == Opcode.STATFS:
            return STATFS_OUT.pack(1, 0, 0, 1, 0, 4096, 255, 4096)
        if opcode == Opcode.LOOKUP:
            found = self._look_up(node, parse_name(body).decode())
            return ENTRY_OUT.pack(found, 0, 1000, 1000, 0, 0, *_directory(found))
        raise OSError(errno.ENOSYS, "")

    def _look_up(self, node: int, name: str) -> int:
        if node == _ROOT:
            return {"fetch": _FETCH, "fail": _FAIL}[name]
        if node in (_FETCH, _FAIL):
            return node << 8 | int(name, 16)
        if node >> 8 == _FAIL:
            self._refuse(f"{name} is not there")
            raise OSError(errno.EIO, "")
        self.bring(bytes([node & 0xFF]) + bytes.fromhex(name))
        raise OSError(errno.ENOENT, "")


def _directory(node: int) -> tuple[int, ...]:
    return (node, 0, 0, *(0,) * 6, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0)


def needs_overlays() -> None:
    """Skip where there is no such stack."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    if not Path("/dev/fuse").exists() or "\toverlay\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs FUSE and overlayfs")
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 5):
        pytest.skip("data-only layers need Linux 6.5")


@contextmanager
def scripted_node(root: Path, budget: int, *, forgetting: bool = False) -> Iterator[ScriptedNode]:
    """A node; everything is unmounted at the end."""
    needs_overlays()
    node = ScriptedNode(root.resolve(), budget, forgetting=forgetting)
    try:
        yield node
    finally:
        node.close()
