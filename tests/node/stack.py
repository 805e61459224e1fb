"""A stack of layers as the node builds it, over plain directories, with a scripted source behind the lazy mount.

store/ab/cdef…   what the source can have; the object's bytes
gates/HEX        a FIFO: whoever brings or views the object waits until it has been written to and closed
broken/HEX       the object cannot be had
brought          a line for each object that was brought
objects/ fetched/ lazy/ meta/ at/   the layers, and the overlay
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from blake3 import blake3

from pagepool.errors import BusyError, UnreachableError
from pagepool.mount.device import unmount_device
from pagepool.mount.mountinfo import mounted_at
from pagepool.node.lazy import LazyOptions, LazyServer, mount_lazy

LARGE = 256 << 10
_libc = ctypes.CDLL(None, use_errno=True)


def name_of(digest: bytes) -> str:
    """An object's name in every data layer."""
    text = digest.hex()
    return f"{text[:2]}/{text[2:]}"


class ScriptedSource:
    """An `ObjectSource` of a directory's objects; whoever wants it in another process makes another one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def size(self, digest: bytes) -> int | None:
        """See `ObjectSource`."""
        try:
            return (self.root / "store" / name_of(digest)).stat().st_size
        except FileNotFoundError:
            return None

    def bring(self, digest: bytes) -> bool:
        """See `ObjectSource`."""
        if self.size(digest) is None:
            return False
        self.wait(digest)
        whole, link = (self.root / layer / name_of(digest) for layer in ("objects", "fetched"))
        if link.exists():
            return True
        with (self.root / "brought").open("a") as file:
            file.write(f"{digest.hex()}\n")
        data = (self.root / "store" / name_of(digest)).read_bytes()
        for path in (whole, link):
            path.parent.mkdir(exist_ok=True)
        temporary = self.root / f"tmp-{os.getpid()}-{digest.hex()}"
        temporary.write_bytes(data)
        temporary.chmod(0o444)
        temporary.replace(whole)
        with suppress(FileExistsError):
            link.hardlink_to(whole)
        return True

    def view(self, digest: bytes, start: int, end: int) -> bytes:
        """See `ObjectSource`."""
        self.wait(digest)
        with (self.root / "store" / name_of(digest)).open("rb") as file:
            return os.pread(file.fileno(), end - start, start)

    def opened_large(self, digest: bytes) -> None:
        """See `ObjectSource`."""

    def wait(self, digest: bytes) -> None:
        """Wait at an object's gate, and fail if it cannot be had."""
        with suppress(FileNotFoundError):
            (self.root / "gates" / digest.hex()).read_bytes()
        if (self.root / "broken" / digest.hex()).exists():
            raise UnreachableError("http://service", "it is not there")


class Stack:
    """The layers, in a directory; see the module."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, bytes] = {}
        for name in ("store", "gates", "broken", "objects", "fetched", "lazy", "meta", "at"):
            (root / name).mkdir()
        self.at = root / "at"
        self.state = root / "state"

    def add(self, name: str, data: bytes) -> bytes:
        """A file of the image. Returns its digest."""
        digest = blake3(data).digest()
        stored = self.root / "store" / name_of(digest)
        stored.parent.mkdir(exist_ok=True)
        stored.write_bytes(data)
        path = self.root / "meta" / name
        path.touch(mode=0o755)
        os.truncate(path, len(data))
        os.setxattr(path, "trusted.overlay.metacopy", b"")
        os.setxattr(path, "trusted.overlay.redirect", f"/{name_of(digest)}".encode())
        self.files[name] = data
        return digest

    def fill(self, small: int, large: int, *, seed: int = 1) -> None:
        """Many files: ``s0``… and ``l0``…"""
        numbers = random.Random(seed)
        for number in range(small):
            self.add(f"s{number}", numbers.randbytes(numbers.randrange(1, 9000)))
        for number in range(large):
            self.add(f"l{number}", numbers.randbytes(LARGE + numbers.randrange(1, 3 << 20)))

    def mount(self) -> None:
        """Mount the overlay. The lazy mount has to be served."""
        root = self.root
        layers = f"{root}/meta::{root}/objects::{root}/lazy/fetch::{root}/fetched::{root}/lazy/fail"
        data = f"lowerdir={layers},metacopy=on,redirect_dir=on"
        if _libc.mount(b"pagepool-test", os.fsencode(self.at), b"overlay", 1, data.encode()):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), data)

    def gate(self, digest: bytes) -> Path:
        """Make whoever wants an object wait at a FIFO."""
        path = self.root / "gates" / digest.hex()
        os.mkfifo(path)
        return path

    def brought(self) -> list[str]:
        """What was brought, in order."""
        path = self.root / "brought"
        return path.read_text().split() if path.exists() else []

    def clear(self) -> None:
        """Unmount everything."""
        for name in ("at", "lazy"):
            while mounted_at(self.root / name) is not None:
                with suppress(BusyError):
                    unmount_device(self.root / name, detach=True, abort=name == "lazy")


@contextmanager
def open_gate(path: Path) -> Iterator[None]:
    """Wait until somebody waits at a gate; it is gone afterwards, and he goes on at the end of the block."""
    descriptor = os.open(path, os.O_WRONLY)
    path.unlink()
    try:
        yield
    finally:
        os.close(descriptor)


def needs_stack() -> None:
    """Skip where there is no such stack."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    if not Path("/dev/fuse").exists() or "\toverlay\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs FUSE and overlayfs")
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release < (6, 9):
        pytest.skip("needs Linux 6.9 for data-only layers and RESEND")


@contextmanager
def lazy_stack(root: Path) -> Iterator[tuple[Stack, int]]:
    """A stack with its lazy mount, which nobody serves yet, and the device. Everything is unmounted at the end."""
    stack = Stack(root)
    try:
        descriptor = mount_lazy(root / "lazy")
        try:
            yield stack, descriptor
        finally:
            with suppress(OSError):
                unmount_device(root / "at", detach=True)
            stack.clear()
            os.close(descriptor)
    finally:
        stack.clear()


@contextmanager
def worker(stack: Stack, descriptor: int, *, resend: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """A process that serves the lazy mount of a stack; killed at the end."""
    words = [sys.executable, "-m", "tests.node.stack", str(stack.root), str(descriptor), *(["old"] * (not resend))]
    process = subprocess.Popen(words, pass_fds=[descriptor], cwd=Path(__file__).parents[2])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def serve(root: Path, descriptor: int, *, resend: bool) -> None:
    """Serve the lazy mount of a stack until it is gone: the whole life of a process."""
    options = LazyOptions(LARGE, resend=resend)
    server = LazyServer(descriptor, ScriptedSource(root), state=root / "state", options=options)
    server.start()
    server.join()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), resend="old" not in sys.argv)
