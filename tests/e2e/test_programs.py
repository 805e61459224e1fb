"""Real programs in a mount, by chroot: a shell, an interpreter with its libraries, a database, a package manager."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import pagepool as program
from tests.support.tools import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server import Service

pytestmark = [
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chroot, and devices in a mount"),
]

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Without `mknod -m`, which needs /proc.
_DEVICES = (
    "cd /dev && mknod null c 1 3 && mknod zero c 1 5 && mknod urandom c 1 9 && chmod 666 null zero urandom && cd / && "
)
_CLUSTER = """mkdir -p /data && chown postgres: /data
su postgres -s /bin/sh -c '
set -e
PATH=/usr/lib/postgresql/15/bin:$PATH
initdb -D /data -A trust >/dev/null
trap "pg_ctl -D /data -m immediate stop >/dev/null 2>&1 || true" EXIT
pg_ctl -D /data -w -l /data/log -o "-k /data -h \\"\\"" start >/dev/null
psql -h /data -qAt -d postgres -c "create table t as select n, md5(n::text) m from generate_series(1, 20000) n;
  create index on t (m); delete from t where n % 3 = 0"
psql -h /data -qAt -d postgres -c "vacuum full t"
psql -h /data -qAt -d postgres -c "select count(*), sum(n) from t"
pg_ctl -D /data -w -m fast stop >/dev/null'
"""
_AGAIN = """
su postgres -s /bin/sh -c '
set -e
PATH=/usr/lib/postgresql/15/bin:$PATH
trap "pg_ctl -D /data -m immediate stop >/dev/null 2>&1 || true" EXIT
pg_ctl -D /data -w -l /data/log -o "-k /data -h \\"\\"" start >/dev/null
psql -h /data -qAt -d postgres -c "select count(*), sum(n) from t"
pg_ctl -D /data -w -m fast stop >/dev/null'
"""


@contextmanager
def mounted(service: Service, image: str, directory: Path) -> Iterator[Path]:
    """An image over an overlay, mounted by the command as a user would, with devices."""
    point = directory / "mount"
    point.mkdir(exist_ok=True)
    keep = ("--pool", directory / "pool")
    program("mount", "-q", image, point, "--upper", directory / "upper", "--dev", *keep, server=service.url)
    try:
        yield point
    finally:
        program("umount", "-q", point)


def run(point: Path, script: str) -> str:
    """Run a shell script in a mount, and return what it printed."""
    command = ["chroot", str(point), "/bin/sh", "-c", script]
    environment = {"PATH": _PATH, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def push(service: Service, images: dict[str, Path], name: str) -> str:
    """Push an image of the set; its reference."""
    program("push", "--quiet", images[name], f"{name}:1", server=service.url)
    return f"{name}:1"


def test_a_shell(slim: Path, service: Service, tmp_path: Path) -> None:
    with mounted(service, push(service, {"slim": slim}, "slim"), tmp_path) as point:
        script = (
            "printf '%s\\n' c a b | sort > /tmp/x; cat /tmp/x; grep -c . /etc/passwd; find / -xdev | wc -l; du -s /usr"
        )
        printed = run(point, script).split()
        assert printed[:3] == ["a", "b", "c"]
        assert int(printed[4]) > 2500
        for name in ("zoneinfo", "doc"):
            run(point, f"cd /usr/share && cp -a {name} copy && diff -r {name} copy && rm -r copy")


def test_python_and_numpy(images: dict[str, Path], service: Service, tmp_path: Path) -> None:
    with mounted(service, push(service, images, "numpy-new"), tmp_path) as point:
        script = (
            "import numpy as n; a = n.arange(9.0).reshape(3, 3) + n.eye(3); print(round(float(n.linalg.det(a)), 6))"
        )
        assert run(point, f"{_DEVICES} python3 -c '{script}'").strip() == "-5.0"


def test_a_database_and_its_cluster(postgres: Path, service: Service, tmp_path: Path) -> None:
    """It creates a cluster, fills it, queries it; mounted again, the cluster is as it was left."""
    image = push(service, {"postgres-new": postgres}, "postgres-new")
    expected = f"{20000 - 6666}|{sum(n for n in range(1, 20001) if n % 3)}"
    with mounted(service, image, tmp_path) as point:
        assert run(point, _DEVICES + _CLUSTER).strip() == expected
    with mounted(service, image, tmp_path) as point:
        assert run(point, _AGAIN).strip() == expected


def test_a_package_manager(images: dict[str, Path], service: Service, tmp_path: Path) -> None:
    """apt installs a package that is made here, and removes another one; what changed is what dpkg did."""
    require("dpkg-deb")
    package = tmp_path / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "usr/share/probe").mkdir(parents=True)
    (package / "usr/share/probe/data").write_bytes(os.urandom(300_000))
    control = (
        "Package: probe\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: probe\n"
    )
    (package / "DEBIAN/control").write_text(control)
    subprocess.run(["dpkg-deb", "--build", str(package), str(tmp_path / "probe.deb")], check=True, capture_output=True)
    with mounted(service, push(service, images, "debian-new"), tmp_path) as point:
        (point / "root/probe.deb").write_bytes((tmp_path / "probe.deb").read_bytes())
        install = "apt-get -qq -o APT::Sandbox::User=root install --yes /root/probe.deb && dpkg -s probe | grep ^Status"
        assert "install ok installed" in run(point, _DEVICES + install)
        assert (point / "usr/share/probe/data").read_bytes() == (package / "usr/share/probe/data").read_bytes()
        remove = "dpkg -r --force-depends --force-remove-essential diffutils"
        run(point, f"dpkg --verify probe && {remove} && ! test -e /usr/bin/cmp")
    changes = program("diff", tmp_path / "upper", "--pool", tmp_path / "pool", server=service.url)
    assert "A /usr/share/probe/data" in changes.splitlines()
    assert "D /usr/bin/cmp" in changes.splitlines()
