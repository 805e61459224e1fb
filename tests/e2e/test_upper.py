"""A real image in a kernel mount, changed by its own programs: what is committed is what the mount showed."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

import pagepool
from pagepool.errors import DeniedError
from pagepool.upper import UpperInfo, make_upper
from tests.support import rootfs, skopeo, umoci
from tests.support.cli import pagepool as program
from tests.support.kernelmounts import KernelImage, scratch, skip_without_kernel_mounts
from tests.support.podman import own_storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.kernelmounts import Container
    from tests.support.server import Service

_CHANGES = r"""
set -e
rm -r /usr/share/doc
mv /usr/lib/apt /usr/lib/moved
mv /usr/lib/moved/methods/http /srv/http
echo changed > /etc/hostname
chmod 700 /usr/bin/perl
ln /bin/dash /srv/shell
ln -s /srv/shell /srv/link
chown 1000:1000 /var/lib/dpkg
rm -r /var/cache; mkdir /var/cache; echo new > /var/cache/new
mkfifo /srv/fifo
printf x | dd of=/bin/bash conv=notrunc bs=1 seek=1000000 2>/dev/null
touch -d 2001-02-03T04:05:06.789 /etc/passwd
cp -a /etc/skel /srv/skel
find /usr/share/zoneinfo -name 'Z*' -delete
truncate -s 40M /srv/disk.img
printf middle | dd of=/srv/disk.img conv=notrunc bs=1 seek=30000000 2>/dev/null
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for mounts; skips where the kernel cannot have them."""
    skip_without_kernel_mounts()
    with scratch() as path:
        yield path


def _mountable(client: pagepool.Client, name: str, place: Path, server: str) -> Container:
    """A container of an image of the service, as a node makes one."""
    image = client.image(name)
    image.fill()
    fs, release = image.open_tree()
    try:
        mounted = KernelImage(place, fs)
        container = mounted.container()
        container.upper.rmdir()
        make_upper(container.upper, fs.tree)
    finally:
        fs.close()
        release()
    UpperInfo(image.repository, server, image.tree, name, image.manifest).write(container.directory)
    return container


def test_a_real_image(slim: Path, service: Service, place: Path, tmp_path: Path) -> None:
    """Commands and library, then other hands: what umoci unpacks and podman runs is what the mount showed."""
    program("push", "--quiet", slim, "debian:1", server=service.url)
    with pagepool.Client(service.url, directory=tmp_path / "client") as client:
        container = _mountable(client, "debian:1", place, service.url)
        with container.mounted() as at:
            assert umoci.describe(at, 1 << 63).keys() > {b"bin", b"etc/passwd"}
            subprocess.run(["chroot", str(at), "/bin/sh", "-c", _CHANGES], check=True)
            shown = umoci.describe(at, 1 << 63)
        options = ("--pool", tmp_path / "client")
        listed = program("diff", *options, container.upper)
        assert listed == program("diff", *options, container.directory)
        assert {"D /usr/lib/apt", "A /srv/http", "C /usr/bin/perl", "C /var/cache"} <= set(listed.splitlines())
        assert "A /srv/skel/.bashrc" in listed
        assert program("cat", *options, f"{container.upper}:/etc/hostname") == "changed\n"
        assert "moved" in program("ls", *options, f"{container.upper}:/usr/lib")
        program("diff", *options, "--tar", tmp_path / "layer.tar", container.upper)
        assert (tmp_path / "layer.tar").stat().st_size < 60_000_000
        program("commit", *options, container.upper, f"{service.host}/debian:2")
        with client.upper(container.upper) as root:
            assert rootfs.describe(root.fs) == shown
            assert root.commit("debian:3")
            assert root.read_text("/etc/hostname") == "changed\n"
        time_ns = container.upper.stat().st_mtime_ns
        (container.upper / "shadow").touch()
        os.setxattr(container.upper / "shadow", "trusted.overlay.metacopy", b"")
        os.setxattr(container.upper / "shadow", "trusted.overlay.redirect", b"/ab/" + b"cd" * 31)
        with pytest.raises(DeniedError, match="shadow has trusted"):
            client.upper(container.upper)
        (container.upper / "shadow").unlink()
        os.utime(container.upper, ns=(time_ns, time_ns))
    skopeo.pull(f"{service.host}/debian:2", tmp_path / "pulled")
    found = umoci.unpack(tmp_path / "pulled", "latest", tmp_path)
    assert rootfs.equal(shown, found) == {}
    assert program("diff", *options, "debian:2", container.upper, server=service.url) == ""
    with own_storage() as podman:
        name = f"{service.host}/debian:3"
        podman.podman("pull", "--quiet", "--tls-verify=false", name)
        disk = "dd if=/srv/disk.img bs=1 skip=30000000 count=6 2>/dev/null; stat -c %s /srv/disk.img"
        script = f"cat /var/cache/new; test ! -e /usr/lib/apt; {disk}; /srv/shell -c 'ls /usr/lib/moved | wc -l'"
        said = podman.podman("run", "--rm", "--network=none", name, "/bin/sh", "-ec", script)
        assert said.splitlines()[:2] == ["new", "middle41943040"]
