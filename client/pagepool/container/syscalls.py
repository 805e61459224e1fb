"""Which system calls a container's programs may make: our default profile, and docker's format of one, resolved.

A profile is a JSON object as docker's ``--security-opt seccomp=FILE`` has it: ``linux.seccomp`` of runtime-spec, with
``archMap`` for architectures, and with ``includes`` and ``excludes`` that say for which capabilities, architectures and
kernels an entry is. `resolve_profile` leaves runtime-spec's part of it, for runc and for
`pagepool.container.seccomp`.

The default forbids what docker's does. A call that it does not know is answered ENOSYS: libraries try what is new, and
take what is old then; after EPERM, which is what forbidden calls are answered, they give up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pagepool.container.options import OptionInvalidError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_EPERM: Final = 1
_ENOSYS: Final = 38
_NEW_NAMESPACES: Final = 0x7E020000
"""All flags of clone(2) that make one."""
_AF_VSOCK: Final = 40
_PERSONALITIES: Final = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
"""What 32-bit programs and `setarch` ask for, and the question what it is."""

_ALLOWED: Final = """
    _llseek _newselect accept accept4 access adjtimex alarm arch_prctl arm_fadvise64_64 arm_sync_file_range bind
    breakpoint brk cacheflush cachestat capget capset chdir chmod chown chown32 clock_adjtime clock_adjtime64
    clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close
    close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat
    faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
    fcntl fcntl64 fdatasync fgetxattr file_getattr file_setattr flistxattr flock fork fremovexattr fsetxattr fstat
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
    futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32
    geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid
    getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt
    gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl
    ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32
    lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr
    lsm_get_self_attr lsm_list_modules lsm_set_self_attr lstat lstat64 madvise map_shadow_stack membarrier memfd_create
    memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect mq_getsetattr
    mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal
    msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat
    openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64
    prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev pselect6
    pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg
    recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall
    riscv_flush_icache riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
    rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp
    select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto
    set_robust_list set_thread_area set_tid_address set_tls setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
    setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
    setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt
    shmget shutdown sigaltstack signal signalfd signalfd4 sigpending sigprocmask sigreturn sigsuspend socketcall
    socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range
    sync_file_range2 syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat
    utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
"""
_FORBIDDEN: Final = """
    _sysctl acct add_key bpf clock_settime clock_settime64 create_module delete_module fanotify_init finit_module
    fsconfig fsmount fsopen fspick get_kernel_syms init_module io_uring_enter io_uring_register io_uring_setup ioperm
    iopl kexec_file_load kexec_load keyctl lookup_dcookie migrate_pages mount mount_setattr move_mount nfsservctl
    open_by_handle_at open_tree open_tree_attr perf_event_open pivot_root query_module quotactl quotactl_fd reboot
    request_key setdomainname sethostname setns settimeofday stime swapoff swapon sysfs syslog umount umount2 unshare
    uselib userfaultfd ustat vhangup vm86 vm86old vserver
"""
_WITH: Final = {
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_NICE": "get_mempolicy mbind move_pages set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
}
"""Those that take a capability: forbidden without it."""

_ALLOW: Final = "SCMP_ACT_ALLOW"
_REFUSE: Final = "SCMP_ACT_ERRNO"
ACTIONS: Final = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    _REFUSE: 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    _ALLOW: 0x7FFF0000,
}
"""What can become of a call, and libseccomp's numbers of it. SCMP_ACT_NOTIFY takes somebody who listens: it is none."""
OPERATORS: Final = {
    **{"SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4},
    **{"SCMP_CMP_GE": 5, "SCMP_CMP_GT": 6, "SCMP_CMP_MASKED_EQ": 7},
}
"""How arguments are compared, and libseccomp's numbers of it."""

_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")),
    "aarch64": ("arm64", ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM")),
    "riscv64": ("riscv64", ("SCMP_ARCH_RISCV64",)),
}
"""By what uname(2) calls a machine: what Go, in whose terms profiles are, calls it, and what it executes. Not x32,
which few kernels have: each takes several milliseconds of each start to be compiled."""


def default_profile(capabilities: Iterable[str], machine: str) -> dict[str, Any]:
    """``linux.seccomp`` for a container with these capabilities. Pure.

    Args:
        machine: as uname(2) has it.
    """
    held = set(capabilities)
    allowed, forbidden = _ALLOWED.split(), _FORBIDDEN.split()
    for capability, names in _WITH.items():
        (allowed if capability in held else forbidden).extend(names.split())
    return {
        "defaultAction": _REFUSE,
        "defaultErrnoRet": _ENOSYS,
        "architectures": list(_ARCHITECTURES.get(machine, ("", ()))[1]),
        "syscalls": [
            {"names": allowed, "action": _ALLOW},
            {"names": forbidden, "action": _REFUSE, "errnoRet": _EPERM},
            {"names": ["clone"], "action": _ALLOW, "args": [_argument(0, "MASKED_EQ", _NEW_NAMESPACES, 0)]},
            # Its flags are in memory, where no filter sees them; libraries take clone then.
            {"names": ["clone3"], "action": _REFUSE, "errnoRet": _ENOSYS},
            {"names": ["socket"], "action": _ALLOW, "args": [_argument(0, "NE", _AF_VSOCK)]},
            {"names": ["socket"], "action": _REFUSE, "errnoRet": _EPERM, "args": [_argument(0, "EQ", _AF_VSOCK)]},
            *(
                {"names": ["personality"], "action": _ALLOW, "args": [_argument(0, "EQ", value)]}
                for value in _PERSONALITIES
            ),
        ],
    }


def _argument(index: int, operator: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{operator}"}


def resolve_profile(
    document: Any, capabilities: Iterable[str], machine: str, kernel: tuple[int, int]
) -> dict[str, Any]:
    """A profile of somebody's as ``linux.seccomp``: what holds for this container on this machine. Pure.

    Args:
        document: as it was parsed.
        machine: as uname(2) has it.
        kernel: its major and minor version.

    Raises:
        OptionInvalidError: it is no profile, or asks for what there is not; it says where.
    """
    if not isinstance(document, dict):
        raise OptionInvalidError("seccomp", "the profile is no JSON object")
    name, architectures = _ARCHITECTURES.get(machine, (machine, ()))
    native = next(iter(architectures), "")
    found: dict[str, Any] = {"defaultAction": _action(document.get("defaultAction"), "defaultAction")}
    if document.get("defaultErrnoRet") is not None:
        found["defaultErrnoRet"] = _number(document["defaultErrnoRet"], "defaultErrnoRet")
    if document.get("archMap") and document.get("architectures"):
        raise OptionInvalidError("architectures", "a profile has these, or archMap")
    if "archMap" in document:
        entries = _dicts(document, "archMap")
        mapped = {str(entry.get("architecture")): entry.get("subArchitectures") or [] for entry in entries}
        found["architectures"] = [native, *mapped.get(native, ())] if native else []
    else:
        found["architectures"] = list(document.get("architectures") or architectures)
    if not all(isinstance(one, str) for one in found["architectures"]):
        raise OptionInvalidError("architectures", "are no names")
    held = set(capabilities)
    found["syscalls"] = [
        _entry(entry, f"syscalls[{number}]")
        for number, entry in enumerate(_dicts(document, "syscalls"))
        if _holds(entry, held, name, kernel)
    ]
    return found


def _entry(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    names = entry.get("names") or [entry.get("name")]
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise OptionInvalidError(where, "it names no system calls")
    found: dict[str, Any] = {"names": names, "action": _action(entry.get("action"), where)}
    if entry.get("errnoRet") is not None:
        found["errnoRet"] = _number(entry["errnoRet"], f"{where}.errnoRet")
    arguments = []
    for argument in _dicts(entry, "args"):
        if argument.get("op") not in OPERATORS:
            raise OptionInvalidError(str(argument.get("op")), f"{where} compares an argument in no way that there is")
        numbers = {key: _number(argument.get(key) or 0, f"{where}.args") for key in ("index", "value", "valueTwo")}
        if numbers["index"] > 5:
            raise OptionInvalidError(str(numbers["index"]), f"{where}: a system call has six arguments")
        arguments.append({**numbers, "op": argument["op"]})
    return {**found, "args": arguments} if arguments else found


def _holds(entry: Mapping[str, Any], held: set[str], name: str, kernel: tuple[int, int]) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    if not isinstance(includes, dict) or not isinstance(excludes, dict):
        raise OptionInvalidError(str(entry.get("names")), "includes and excludes of system calls are JSON objects")
    if not set(includes.get("caps") or ()) <= held or held & set(excludes.get("caps") or ()):
        return False
    if (includes.get("arches") and name not in includes["arches"]) or name in (excludes.get("arches") or ()):
        return False
    least, most = _version(includes.get("minKernel")), _version(excludes.get("minKernel"))
    return (least is None or kernel >= least) and (most is None or kernel < most)


def _version(text: Any) -> tuple[int, int] | None:
    if not text:
        return None
    major, _, minor = str(text).partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise OptionInvalidError(str(text), "is no version of a kernel: MAJOR.MINOR")
    return int(major), int(minor)


def _dicts(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = document.get(key) or []
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise OptionInvalidError(key, "is no list of JSON objects in the profile")
    return found


def _action(value: Any, where: str) -> str:
    if not isinstance(value, str) or value not in ACTIONS:
        raise OptionInvalidError(str(value), f"{where} is none of {', '.join(ACTIONS)}")
    return str(value)


def _number(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise OptionInvalidError(str(value), f"{where} is no number from 0")
    return value
