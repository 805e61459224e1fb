"""Run tests on the kernel of a Debian release, in a virtual machine: what a kernel has decides what a mount can do.

    python tests/vm/run.py trixie -- tests/mount/kernel tests/pool/test_scrub.py
    python tests/vm/run.py bookworm --command '.venv/bin/pagepool demo'

Makes a disk with Debian, its kernel, and this copy of the project in it, once for each release (``--fresh`` makes it
anew), and boots it by QEMU: with KVM where that is to be had, else by emulation, ten times as slow. So it is no part of
CI. As root; needs mmdebstrap, e2fsprogs and qemu-system-x86, and 8 GB. The machine has no network; control groups
are of version 2, and systemd runs. Test images that are in the cache of tests are put into it.

Where packages come from is read out of this machine's apt and pip configuration. Exit code: of the command.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support import images

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = (
    *("attr", "ca-certificates", "containernetworking-plugins", "dbus", "e2fsprogs", "erofs-utils", "fuse3"),
    *("initramfs-tools", "iproute2", "kmod", "libseccomp2", "linux-image-amd64", "mount", "procps", "python3"),
    *("python3-venv", "runc", "skopeo", "systemd", "systemd-sysv", "umoci", "util-linux", "xfsprogs"),
)
IMAGES = ("debian-new", "python-new")
DISK_SIZE = 12 << 30
_FROM_HERE = ("etc/pip.conf", "etc/ssl/certs/ca-certificates.crt", "etc/resolv.conf", "etc/hosts")
_UNIT = """\
[Unit]
After=multi-user.target
[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
Environment=HOME=/root PYTHONUNBUFFERED=1 COLUMNS=120 TERM=dumb
WorkingDirectory=/src
ExecStart=/bin/bash /job
ExecStopPost=/bin/systemctl poweroff --force
TimeoutStartSec=infinity
"""
_JOB = """\
ulimit -Hn 20000; ip link set lo up; uname -r
for module in fuse loop quota_v2 xfs erofs overlay; do modprobe $module 2>/dev/null; done
( {command} ) 2>&1
echo "exit status $?"
sync
"""
_STATUS = re.compile(r"^exit status (\d+)\s*$", re.MULTILINE)


def main() -> int:
    """Parse the command line, and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", help="of Debian, such as bookworm (Linux 6.1) or trixie (6.12)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp/pagepool-vm"), help="where disks are kept")
    parser.add_argument("--fresh", action="store_true", help="make the disk anew")
    parser.add_argument("--memory", default="4G", help="of the machine")
    parser.add_argument("--command", help="what to run in it, instead of pytest")
    parser.add_argument("tests", nargs="*", help="arguments for pytest, behind --")
    given = parser.parse_args()
    if os.geteuid() or not all(map(shutil.which, ("mmdebstrap", "mke2fs", "qemu-system-x86_64"))):
        parser.error("this needs root, mmdebstrap, e2fsprogs and qemu-system-x86")
    place = given.dir.resolve() / given.release
    if given.fresh:
        shutil.rmtree(place, ignore_errors=True)
    if not (place / "root").exists():
        make_root(given.release, place)
    command = given.command or f".venv/bin/python -m pytest -n 0 -v -rs {shlex.join(given.tests)}"
    return boot(place, command, given.memory)


def make_root(release: str, place: Path) -> None:
    """Make the root directory of a machine. Complete or absent."""
    place.mkdir(parents=True, exist_ok=True)
    making = place / "making"
    shutil.rmtree(making, ignore_errors=True)
    options = ("--variant=minbase", "--components=main", f"--include={','.join(PACKAGES)}")
    subprocess.run(["mmdebstrap", *options, release, making, _mirror()], check=True)
    for name in _FROM_HERE:
        if Path("/", name).exists():
            shutil.copyfile(Path("/", name), making / name)
    (making / "etc/systemd/system/serial-getty@ttyS0.service").symlink_to("/dev/null")
    unit = making / "etc/systemd/system/job.service"
    unit.write_text(_UNIT)
    wants = making / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "job.service").symlink_to("../job.service")
    making.rename(place / "root")


def boot(place: Path, command: str, memory: str) -> int:
    """Put the project as it is now into the machine, start it, and print what the command prints. Blocks for minutes.

    Returns:
        the exit status of the command; 125 if the machine ended without one.
    """
    root = place / "root"
    _put_project(root)
    (root / "job").write_text(_JOB.format(command=command))
    disk = place / "disk.img"
    disk.unlink(missing_ok=True)
    with disk.open("wb") as file:
        file.truncate(DISK_SIZE)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "verity", "-d", root, disk], check=True)
    kernel, initrd = (next((root / "boot").glob(pattern)) for pattern in ("vmlinuz-*", "initrd.img-*"))
    # /dev/kvm may be there, and not usable, in a machine that is virtual itself.
    accelerator = "kvm" if re.search(r"\b(svm|vmx)\b", Path("/proc/cpuinfo").read_text()) else "tcg,thread=multi"
    machine = ["qemu-system-x86_64", "-accel", accelerator, "-cpu", "max", "-smp", "2"]
    machine += ["-m", memory, "-nographic", "-no-reboot", "-nic", "none"]
    machine += ["-kernel", str(kernel), "-initrd", str(initrd)]
    machine += ["-append", "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 mitigations=off"]
    machine += ["-drive", f"file={disk},if=virtio,format=raw,cache=unsafe"]
    said = ""
    with subprocess.Popen(machine, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said = (said + line.decode(errors="replace"))[-4096:]
            sys.stdout.write(line.decode(errors="replace"))
            sys.stdout.flush()
    found = _STATUS.findall(said)
    return int(found[-1]) if found else 125


def _put_project(root: Path) -> None:
    source = root / "src"
    source.mkdir(exist_ok=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (PROJECT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, source / name)
    for name in IMAGES:
        layout, there = images.default_cache_dir() / name, root / "root/.cache/pagepool/test-images" / name
        if layout.exists() and not there.exists():
            shutil.copytree(layout, there)
    links = os.environ.get("PIP_FIND_LINKS", "")
    install = "[ -e .venv ] || { python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]'; }"
    prepare = 'mount --make-rprivate / && mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && '
    prepare += f'if [ -d "{links}" ]; then mkdir -p "$0{links}" && mount --bind "{links}" "$0{links}"; fi && '
    prepare += f'chroot "$0" bash -c "cd /src && {install} && .venv/bin/python -m compileall -q client service tests"'
    subprocess.run(["unshare", "--mount", "sh", "-c", prepare, root], check=True)


def _mirror() -> str:
    """Where this machine's own Debian comes from."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], check=True, capture_output=True, text=True
    ).stdout.split()
    return next(target for target in targets if target.rstrip("/").endswith("/debian"))


if __name__ == "__main__":
    sys.exit(main())
