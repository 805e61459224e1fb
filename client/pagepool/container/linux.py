"""System calls of namespaces and processes that Python does not wrap. Each raises OSError when it fails.

Numbers are those of x86-64, arm64 and riscv64, which agree on all that is newer than arm64.
Nothing here knows about containers. Mounting is `pagepool.linux.mounts`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import Final

from pagepool.linux import mounts
from pagepool.linux.calls import call

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_IN_ROOT: Final = 0x10

_OPENAT2: Final = 437
_OTHERS: Final = {"getcwd": 17, "pivot_root": 41, "capget": 90, "capset": 91, "keyctl": 219, "seccomp": 277}
_X86_64: Final = {"getcwd": 79, "pivot_root": 155, "capget": 125, "capset": 126, "keyctl": 250, "seccomp": 317}
_SECCOMP_SET_MODE_FILTER: Final = 1
_JOIN_SESSION_KEYRING: Final = 1
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1
_CAPABILITY_VERSION_3: Final = 0x20080522


def load() -> None:
    """Have everything loaded that the calls need, so that none is looked for after a change of root."""
    call("getpid")
    _number("pivot_root")


def unshare(flags: int) -> None:
    """Leave namespaces for new ones; a new namespace of processes begins with the next child."""
    call("unshare", ctypes.c_int(flags))


def raise_loopback() -> None:
    """Have this namespace of networks reach itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


def setns(process: int, flags: int) -> None:
    """Enter namespaces of a process, given as a descriptor of it (Linux 5.8), that of processes with the next child; or
    a namespace, given as a descriptor of that."""
    call("setns", ctypes.c_int(process), ctypes.c_int(flags))


def new_session_keyring() -> None:
    """Leave the session's keys behind; nothing happens where the kernel has none."""
    try:
        call("syscall", ctypes.c_long(_number("keyctl")), ctypes.c_int(_JOIN_SESSION_KEYRING), None, path="keyctl")
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):  # a filter of system calls may refuse it
            raise


def is_in_root() -> bool:
    """Whether a path leads from this process's root to its working directory. What libc has for it walks around."""
    path = ctypes.create_string_buffer(65536)
    call("syscall", ctypes.c_long(_number("getcwd")), path, ctypes.c_size_t(len(path)), path="getcwd")
    return path.value.startswith(b"/")


def pivot_root() -> None:
    """Make the working directory, which is a mount, the root, and let go of the old one."""
    call("syscall", ctypes.c_long(_number("pivot_root")), b".", b".", path="pivot_root")
    mounts.unmount(".", mounts.MNT_DETACH)
    os.chdir("/")


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_in_root(root: int, path: str | bytes, flags: int, mode: int = 0) -> int:
    """Open a path as a process whose root directory is `root` would: no symlink and no ``..`` leads out.

    Raises:
        OSError: as open(2); ENOSYS before Linux 5.6.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    while True:
        try:
            return call(
                "syscall",
                *(ctypes.c_long(_OPENAT2), ctypes.c_int(root), os.fsencode(path)),
                *(ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))),
                path=os.fsdecode(path),
            )
        except OSError as error:
            if error.errno != errno.EAGAIN:  # a directory above was renamed meanwhile
                raise


def prctl(option: int, argument: int = 0) -> int:
    """See prctl(2)."""
    zero = ctypes.c_ulong(0)
    return call("prctl", ctypes.c_int(option), ctypes.c_ulong(argument), zero, zero, zero)


def sethostname(name: str) -> None:
    """Name the machine, in this namespace of names."""
    raw = os.fsencode(name)
    call("sethostname", raw, ctypes.c_size_t(len(raw)))


class _Filter(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def filter_calls(program: bytes) -> None:
    """Have this process, and all that come of it, make only the system calls that a filter lets through, for ever.

    Args:
        program: ``struct sock_filter[]``; empty: nothing happens.

    Raises:
        OSError: we have neither CAP_SYS_ADMIN nor no_new_privs; the kernel has no filters (EINVAL).
    """
    if not program:
        return
    code = ctypes.create_string_buffer(program, len(program))
    header = _Filter(len(program) // 8, ctypes.addressof(code))
    arguments = ctypes.c_uint(_SECCOMP_SET_MODE_FILTER), ctypes.c_uint(0), ctypes.byref(header)
    call("syscall", ctypes.c_long(_number("seccomp")), *arguments, path="a filter of system calls")


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def keep_capabilities(numbers: set[int], own: frozenset[int] = frozenset()) -> None:
    """Drop every capability but these, from this process and from all that it will execute.

    Args:
        own: kept by this process and its children until they execute something, or become a user.
    """
    for number in range(64):
        try:
            held = prctl(PR_CAPBSET_READ, number)
        except OSError:
            break  # the last one there is was before it
        if held and number not in numbers:
            prctl(PR_CAPBSET_DROP, number)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    held_now = _permitted()
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    words = (_CapabilityData * 2)()
    for number in (numbers | own) & held_now:
        words[number // 32].effective |= 1 << number % 32
        words[number // 32].permitted |= 1 << number % 32
    call("syscall", ctypes.c_long(_number("capset")), ctypes.byref(header), ctypes.byref(words), path="capset")


def _permitted() -> set[int]:
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    words = (_CapabilityData * 2)()
    call("syscall", ctypes.c_long(_number("capget")), ctypes.byref(header), ctypes.byref(words), path="capget")
    return {number for number in range(64) if words[number // 32].permitted >> number % 32 & 1}


def _number(name: str) -> int:
    return (_X86_64 if os.uname().machine == "x86_64" else _OTHERS)[name]
