"""A filter of system calls as the kernel takes it (seccomp(2)), made by libseccomp of runtime-spec's ``linux.seccomp``.

For our own runtime only; runc does it itself. The filter is made outside, before there is a container: inside it, only
`linux.filter_calls` is left to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from pagepool.container.syscalls import ACTIONS, OPERATORS
from pagepool.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_LIBRARY: Final = "libseccomp.so.2"
_ERROR: Final = -1
"""What libseccomp answers for the number of a system call that it does not know (__NR_SCMP_ERROR)."""
_NO_NEW_PRIVILEGES: Final = 3
_OPTIMIZE: Final = 8
"""Attributes of a filter: whether loading it sets no_new_privs; how it is laid out, of which 2 is a binary tree."""


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def find_filter(profile: Mapping[str, Any], kept: Path) -> bytes:
    """As `compile_filter`, which takes ten milliseconds, or what it made of the same profile before.

    Args:
        kept: a directory of ours alone, where that is.

    Raises:
        UnsupportedError: libseccomp is not installed, or cannot make it.
        OSError: it cannot be kept.
    """
    library = _load()
    version = ctypes.string_at(library.seccomp_version(), ctypes.sizeof(ctypes.c_uint) * 3)
    name = blake3(version + json.dumps(profile).encode()).hexdigest()
    path = kept / name
    with contextlib.suppress(FileNotFoundError):
        if found := path.read_bytes():
            return found
    program = compile_filter(profile)
    kept.mkdir(mode=0o700, exist_ok=True)
    written = kept / f".{name}-{os.urandom(8).hex()}"
    written.write_bytes(program)
    written.rename(path)
    return program


def compile_filter(profile: Mapping[str, Any]) -> bytes:
    """The filter, as ``struct sock_filter[]``.

    Raises:
        UnsupportedError: libseccomp is not installed, or cannot make it.
    """
    library = _load()
    context = library.seccomp_init(_action(profile, "defaultAction", "defaultErrnoRet"))
    if not context:
        raise UnsupportedError(f"{_LIBRARY} makes no filter of system calls for this profile")
    try:
        for name in profile.get("architectures") or ():
            token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
            if not token:
                raise UnsupportedError(f"{_LIBRARY} knows no architecture {name}")
            _check(library.seccomp_arch_add(context, token), name, but=errno.EEXIST)
        _check(library.seccomp_attr_set(context, _NO_NEW_PRIVILEGES, 0), "attributes")
        library.seccomp_attr_set(context, _OPTIMIZE, 2)  # from 2.5 on; it is only faster
        for name, action, comparisons in _rules(profile):
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number != _ERROR:  # else it is newer than the library, and has the default
                array = (_Comparison * len(comparisons))(*comparisons)
                _check(library.seccomp_rule_add_array(context, action, number, len(array), array), name)
        return _export(library, context)
    finally:
        library.seccomp_release(context)


def _rules(profile: Mapping[str, Any]) -> Iterator[tuple[str, int, list[_Comparison]]]:
    """Each name with what becomes of it. As runc does: several comparisons of one argument are alternatives."""
    default = _action(profile, "defaultAction", "defaultErrnoRet")
    for entry in profile.get("syscalls") or ():
        action = _action(entry, "action", "errnoRet")
        if action == default:
            continue
        comparisons = [
            _Comparison(one["index"], OPERATORS[one["op"]], one["value"], one["valueTwo"])
            for one in entry.get("args") or ()
        ]
        alternatives = [[one] for one in comparisons]
        if len({one.arg for one in comparisons}) == len(comparisons):
            alternatives = [comparisons]
        for name in entry["names"]:
            for one in alternatives:
                yield name, action, one


def _action(entry: Mapping[str, Any], key: str, number: str) -> int:
    name = entry[key]
    value = ACTIONS[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        value |= entry.get(number, errno.EPERM) & 0xFFFF
    return value


def _export(library: ctypes.CDLL, context: int) -> bytes:
    descriptor = os.memfd_create("pagepool-filter", os.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, descriptor), "filter")
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def _check(result: int, what: str, but: int = 0) -> None:
    if result < 0 and -result != but:
        raise UnsupportedError(f"{_LIBRARY} makes no filter of system calls: {what}: {os.strerror(-result)}")


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise UnsupportedError(
            f"{_LIBRARY}, which makes the filter of system calls, is not installed: apt-get install libseccomp2; "
            "without a filter: --security-opt seccomp=unconfined"
        ) from error
    pointer, number, text = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_char_p
    for name, result, arguments in (
        ("version", pointer, ()),
        ("init", pointer, (number,)),
        ("release", None, (pointer,)),
        ("arch_resolve_name", number, (text,)),
        ("arch_add", ctypes.c_int, (pointer, number)),
        ("attr_set", ctypes.c_int, (pointer, ctypes.c_int, number)),
        ("syscall_resolve_name", ctypes.c_int, (text,)),
        ("rule_add_array", ctypes.c_int, (pointer, number, ctypes.c_int, ctypes.c_uint, pointer)),
        ("export_bpf", ctypes.c_int, (pointer, ctypes.c_int)),
    ):
        function = getattr(library, f"seccomp_{name}")
        function.restype, function.argtypes = result, arguments
    return library
