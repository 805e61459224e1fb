"""Which system calls programs in containers may make: what profiles say, and what kernels do about it."""

from __future__ import annotations

import ctypes
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pagepool.container import OptionInvalidError, seccomp
from pagepool.container.defaults import CAPABILITIES
from pagepool.container.seccomp import compile_filter, find_filter
from pagepool.container.syscalls import default_profile, resolve_profile
from pagepool.errors import UnsupportedError
from tests.container.conftest import READY, begin, end

if TYPE_CHECKING:
    from tests.container.conftest import Place

_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
_MACHINE = pytest.mark.skipif(platform.machine() != "x86_64", reason="has the numbers of x86-64")
_PROGRAM = """
import ctypes, json, os, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def number(*words):
    ctypes.set_errno(0)
    found = libc.syscall(*(ctypes.c_long(word) for word in words))
    return ctypes.get_errno() if found < 0 else 0
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
print(subprocess.run(["/bin/sh", "-c", "echo child"], capture_output=True, text=True).stdout, end="")
print(json.dumps([number(*words) for words in json.loads(sys.argv[1])]))
"""
_EPERM, _EBADF, _EINVAL, _ENOSYS, _EOPNOTSUPP = 1, 9, 22, 38, 95
_CALLS: dict[str, tuple[tuple[int, ...], int]] = {
    "unshare a user namespace": ((272, 0x10000000), _EPERM),
    "clone into one": ((56, 0x10000000 | 17, 0, 0, 0, 0), _ENOSYS),
    "clone3": ((435, 0, 0), _ENOSYS),
    "mount": ((165, 0, 0, 0, 0, 0), _EPERM),
    "fsopen": ((430, 0, 0), _EPERM),
    "keyctl": ((250, 0, -3, 0), _EPERM),
    "bpf": ((321, 0, 0, 0), _EPERM),
    "io_uring_setup": ((425, 0, 0), _EPERM),
    "userfaultfd": ((323, 0), _EPERM),
    "perf_event_open": ((298, 0, 0, -1, -1, 0), _EPERM),
    "open_by_handle_at": ((304, -1, 0, 0), _EPERM),
    "a socket of virtual machines": ((41, 40, 1, 0), _EPERM),
    "a socket": ((41, 1, 1, 0), 0),
    "get_mempolicy": ((239, 0, 0, 0, 0, 0), _EPERM),
    "what personality it is": ((135, 0xFFFFFFFF), 0),
    "another personality": ((135, 0x0040000), _ENOSYS),
    "a call that is not there yet": ((900, 0, 0), _ENOSYS),
    "close": ((3, -1), _EBADF),
    "getpid": ((39,), 0),
}


def _run(place: Place, *options: str, calls: list[tuple[int, ...]]) -> list[int]:
    done = place.run(*options, "--", "python3", "-c", _PROGRAM, json.dumps(calls))
    assert done.returncode == 0, done.stderr
    thread, child, found = done.stdout.splitlines()
    assert (thread, child) == ("thread", "child")
    numbers: list[int] = json.loads(found)
    return numbers


@_ROOT
@_MACHINE
def test_what_is_forbidden(place: Place) -> None:
    """To root, and to users, who get the filter before they are users."""
    expected = {name: answer for name, (_, answer) in _CALLS.items()}
    calls = [words for words, _ in _CALLS.values()]
    for options in ((), ("-u", "nobody"), ("--security-opt", "no-new-privileges"), ("--cap-drop", "ALL")):
        assert dict(zip(_CALLS, _run(place, *options, calls=calls), strict=True)) == expected, options
    more = _run(place, "--cap-add", "SYS_NICE", calls=[_CALLS["get_mempolicy"][0]])
    assert more == [0]


@_ROOT
@_MACHINE
def test_without_a_filter(place: Place) -> None:
    found = _run(place, "--security-opt", "seccomp=unconfined", calls=[_CALLS["fsopen"][0], (250, 0, -3, 0)])
    assert found[0] != _ENOSYS
    done = place.run("--security-opt", "seccomp=unconfined", "--", "grep", "Seccomp:", "/proc/self/status")
    assert done.stdout.split()[1] == "0"
    done = place.run("--", "grep", "Seccomp:", "/proc/self/status")
    assert done.stdout.split()[1] == "2"


@_ROOT
def test_programs_beside_it_are_filtered_too(place: Place) -> None:
    started = begin(place, "--name", "web", "--", "sh", "-c", READY)
    done = place.call(*place.command("exec", "web", "grep", "Seccomp:", "/proc/self/status"))
    assert done.stdout.split()[1] == "2"
    assert place.call(*place.command("exec", "-t", "web", "unshare", "-r", "true")).returncode == 1
    assert place.call(*place.command("stop", "--time", "0", "web")).returncode == 0
    assert end(started)[0] == 137


@_ROOT
@_MACHINE
def test_a_profile_of_ones_own(place: Place, tmp_path: Path) -> None:
    """As docker's users write them: what is not said is allowed, and one way of a call has an error of its own."""
    profile = tmp_path / "profile.json"
    profile.write_text(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
                "syscalls": [
                    {"names": ["getcpu"], "action": "SCMP_ACT_ERRNO", "errnoRet": _EOPNOTSUPP},
                    {
                        "name": "getsid",
                        "action": "SCMP_ACT_ERRNO",
                        "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
                    },
                    {"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                    {"names": ["sync"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                    {"names": ["no_such_call"], "action": "SCMP_ACT_ERRNO"},
                ],
            }
        )
    )
    calls = [(309, 0, 0, 0), (124, 1), (124, 0), (110,), (162,), (425, 0, 0)]
    found = _run(place, "--security-opt", f"seccomp={profile}", calls=calls)
    assert found[:-1] == [_EOPNOTSUPP, _EPERM, 0, 0, _EPERM]
    assert found[-1] != _EPERM


@_ROOT
@_MACHINE
def test_podmans_profile(place: Place) -> None:
    """That of Debian's podman, which has all that the format has."""
    path = Path("/usr/share/containers/seccomp.json")
    if not path.exists():
        pytest.skip("needs golang-github-containers-common: apt-get install podman")
    names = ("bpf", "getpid", "a call that is not there yet")
    found = _run(place, "--security-opt", f"seccomp={path}", calls=[_CALLS[name][0] for name in names])
    assert found == [_CALLS[name][1] for name in names]


def test_what_is_no_profile(place: Place, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    for text, words in (
        ("{", "is no JSON"),
        ("[]", "is no profile"),
        ('{"defaultAction": "SCMP_ACT_MAYBE"}', "SCMP_ACT_MAYBE"),
    ):
        profile.write_text(text)
        done = place.run("--security-opt", f"seccomp={profile}", "--", "true")
        assert (done.returncode, words in done.stderr) == (125, True), done.stderr
    done = place.run("--security-opt", "seccomp=/nowhere", "--", "true")
    assert (done.returncode, "'seccomp=/nowhere': cannot be read" in done.stderr) == (125, True), done.stderr


def test_every_name_is_a_system_calls() -> None:
    """Each is known to libseccomp, but for those that are newer than the one of Debian 12."""
    newer = {
        *("file_getattr", "file_setattr", "getxattrat", "listmount", "listxattrat", "lsm_get_self_attr"),
        *("lsm_list_modules", "lsm_set_self_attr", "mseal", "open_tree_attr", "removexattrat", "riscv_hwprobe"),
        *("setxattrat", "statmount", "uretprobe"),
    }
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("needs libseccomp2")
    names = [name for entry in default_profile((), "x86_64")["syscalls"] for name in entry["names"]]
    unknown = {name for name in names if library.seccomp_syscall_resolve_name(name.encode()) == -1}
    assert unknown <= newer
    allowed, forbidden = (default_profile((), "x86_64")["syscalls"][number]["names"] for number in (0, 1))
    assert not set(allowed) & set(forbidden)
    assert len(set(allowed)) == len(allowed)


def _entry(**given: Any) -> dict[str, Any]:
    return {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", **given}


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ({}, True),
        ({"includes": {"caps": ["CAP_CHOWN"]}}, True),
        ({"includes": {"caps": ["CAP_CHOWN", "CAP_BPF"]}}, False),
        ({"excludes": {"caps": ["CAP_CHOWN", "CAP_BPF"]}}, False),
        ({"excludes": {"caps": ["CAP_BPF"]}}, True),
        ({"includes": {"arches": ["arm64", "amd64"]}, "excludes": {}}, True),
        ({"includes": {"arches": ["s390x"]}, "excludes": None}, False),
        ({"excludes": {"arches": ["amd64"]}}, False),
        ({"includes": {"minKernel": "6.5"}}, True),
        ({"includes": {"minKernel": "6.10"}}, False),
        ({"excludes": {"minKernel": "6.10"}}, True),
        ({"excludes": {"minKernel": "4.8"}}, False),
    ],
)
def test_conditions(conditions: dict[str, Any], kept: bool) -> None:
    document = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [_entry(**conditions)]}
    found = resolve_profile(document, CAPABILITIES, "x86_64", (6, 5))
    assert found["syscalls"] == ([_entry()] if kept else [])
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "no JSON object"),
        ({"defaultAction": "ALLOW"}, "ALLOW"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "SCMP_ACT_NOTIFY"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": -1}, "-1"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": {"names": []}}, "syscalls"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": ["bpf"]}, "syscalls"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [_entry(names=[])]}, r"syscalls\[0\]"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [_entry(action=None)]}, r"syscalls\[0\]"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [_entry(errnoRet="1")]}, "errnoRet"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [_entry(args=[{"op": "SCMP_CMP_IN"}])]}, "SCMP_CMP_IN"),
        (
            {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [_entry(args=[{"op": "SCMP_CMP_EQ", "index": 6}])]},
            "six arguments",
        ),
        ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [_entry(includes={"minKernel": "six"})]}, "six"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [_entry(includes=["x"])]}, "includes"),
        ({"defaultAction": []}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "archMap": [{}], "architectures": ["x"]}, "archMap"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "architectures": [1]}, "no names"),
    ],
)
def test_bad_profiles(document: Any, words: str) -> None:
    with pytest.raises(OptionInvalidError, match=words):
        resolve_profile(document, CAPABILITIES, "x86_64", (6, 5))


def test_a_filter_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each profile; what was broken off leaves none."""
    profile = default_profile(CAPABILITIES, "x86_64")
    made = find_filter(profile, tmp_path / "filters")
    assert made == compile_filter(profile)
    assert len(made) % 8 == 0
    other = find_filter(default_profile((), "x86_64"), tmp_path / "filters")
    assert other != made
    assert len(list((tmp_path / "filters").iterdir())) == 2
    monkeypatch.setattr(seccomp, "compile_filter", lambda _: pytest.fail("it is there"))
    assert find_filter(profile, tmp_path / "filters") == made


def test_without_libseccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said what to do; nothing runs without the filter that was meant to be there."""
    monkeypatch.setattr(seccomp, "_LIBRARY", "libseccomp.so.0")
    with pytest.raises(UnsupportedError, match="apt-get install libseccomp2"):
        compile_filter(default_profile((), "x86_64"))
