"""A committed image in other hands: skopeo copies it, docker and podman run what the overlay showed."""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest

import pagepool
from pagepool.commit import CommitOptions, build_commit, parse_instruction
from pagepool.extents import EXTENT_SIZE
from pagepool.image import Kind
from pagepool.layout import plan_copy, run_copy
from pagepool.node.client import KernelMountOptions
from pagepool.oci import Reference
from pagepool.transport import RegistryClient, RegistrySink, RegistrySource, Session
from tests.commit.changed import TIME_NS, Changed
from tests.overlay.layers import rows
from tests.support import rootfs, skopeo, umoci
from tests.support.cli import pagepool as program
from tests.support.docker import running_docker
from tests.support.layouts import read_image
from tests.support.nodeserver import running_node
from tests.support.podimages import busybox, make_tar, push_layers
from tests.support.podman import own_storage

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool.oci.mediatypes import Compression
    from tests.support.server import Service

COMPRESSIONS: tuple[Compression, ...] = ("none", "gzip", "zstd")
_TYPES = {
    Kind.REGULAR: tarfile.REGTYPE,
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.CHAR: tarfile.CHRTYPE,
    Kind.FIFO: tarfile.FIFOTYPE,
}
# What docker and podman put into every container.
_OWN = frozenset(("dev", "etc", "proc", "run", "sys", ".dockerenv"))


class Seen(NamedTuple):
    """One name, as an exported container shows it."""

    type: bytes
    mode: int
    owner: tuple[int, int]
    mtime: int
    content: object


@pytest.fixture
def changed() -> Changed:
    return Changed()


def commit(service: Service, changed: Changed, compression: Compression) -> str:
    """Push the parent, commit to it, and return ``host:port/name:tag``."""
    with Session(service.url) as session:
        client = RegistryClient(session)
        run_copy(plan_copy(changed.parent), changed.parent, RegistrySink(client, Reference.parse("base:1")))
        parent = RegistrySource(client, Reference.parse("base:1"))
        options = CommitOptions(compression=compression, instructions=[parse_instruction('CMD ["/a/c"]')])
        with build_commit(changed.now, changed.plan(), parent, options) as new:
            run_copy(plan_copy(new), new, RegistrySink(client, Reference.parse(f"new:{compression}")))
    return f"{service.host}/new:{compression}"


def expected(changed: Changed) -> dict[str, Seen]:
    """What a container of the image has to show."""
    found: dict[str, Seen] = {}
    for path, (kind, mode, uid, gid, mtime_ns, content, _, _) in rows(changed.now).items():
        name = path.decode("utf-8", "surrogateescape")
        if path != b".":
            found[name] = Seen(_TYPES[kind], mode, (uid, gid), mtime_ns // 10**9, content)
    return found


def exported(tar: bytes) -> tuple[dict[str, Seen], list[frozenset[str]]]:
    """What an exported container shows, and which names are one file."""
    found: dict[str, Seen] = {}
    links: dict[str, set[str]] = {}
    with tarfile.open(fileobj=io.BytesIO(tar), errors="surrogateescape") as archive:
        for info in archive:
            name = info.name.removeprefix("./").rstrip("/")
            if name in ("", ".") or name.split("/")[0] in _OWN:
                continue
            if info.type == tarfile.LNKTYPE:
                links.setdefault(info.linkname.removeprefix("./"), set()).add(name)
                found[name] = found[info.linkname.removeprefix("./")]
                continue
            content: object = None
            if info.isreg() and (file := archive.extractfile(info)):
                content = file.read()
            elif info.issym():
                content = info.linkname.encode()
            elif info.ischr():
                content = (info.devmajor, info.devminor)
            mode = 0o777 if info.issym() else stat.S_IMODE(info.mode)
            found[name] = Seen(info.type, mode, (info.uid, info.gid), int(info.mtime), content)
    return found, [frozenset({first, *more}) for first, more in links.items()]


def check(tar: bytes, changed: Changed) -> None:
    """An exported container is what the changed file system is."""
    found, links = exported(tar)
    assert found == expected(changed)
    names = {row[-1] for row in rows(changed.now).values() if len(row[-1]) > 1}
    assert set(links) == {frozenset(name.decode("utf-8", "surrogateescape") for name in group) for group in names}


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_skopeo(service: Service, changed: Changed, compression: Compression, tmp_path: Path) -> None:
    """umoci unpacks what skopeo copies. It reads no zstd, so skopeo recompresses that."""
    recompress = ("--dest-compress", "--dest-compress-format", "gzip") if compression == "zstd" else ()
    name = commit(service, changed, compression)
    skopeo.copy(f"docker://{name}", f"oci:{tmp_path / 'pulled'}:latest", *recompress)
    found = umoci.unpack(tmp_path / "pulled", "latest", tmp_path)
    wanted = rows(changed.now)
    assert found.keys() == wanted.keys()
    for path, row in found.items():
        assert (row.mode, row.uid, row.gid, row.links) == (*wanted[path][1:4], wanted[path][-1]), path
        assert row.mtime_ns in (TIME_NS, None), path


def test_podman(service: Service, changed: Changed) -> None:
    with own_storage() as podman:
        for compression in COMPRESSIONS:
            name = commit(service, changed, compression)
            podman.podman("pull", "--quiet", "--tls-verify=false", name)
            container = podman.podman("create", name).strip()
            target = podman.directory / f"{compression}.tar"
            podman.podman("export", "--output", target, container)
            check(target.read_bytes(), changed)


def test_docker(service: Service, changed: Changed, tmp_path: Path) -> None:
    """Without zstd, which Docker 20.10 does not read."""
    with running_docker() as docker:
        for compression in COMPRESSIONS[:2]:
            name = commit(service, changed, compression)
            docker("pull", "--quiet", name)
            container = docker("create", name).strip()
            target = tmp_path / f"{compression}.tar"
            docker("export", "--output", target, container)
            check(target.read_bytes(), changed)


def test_a_real_image(slim: Path, service: Service, tmp_path: Path) -> None:
    """Changes as a package manager makes them: what is pulled and unpacked is what the overlay showed."""
    program("push", "--quiet", slim, "debian:1", server=service.url)
    with pagepool.Client(service.url, directory=tmp_path / "client") as client:
        image = client.image("debian:1")
        image.fill()
        with image.overlay(tmp_path / "upper") as root:
            root.rmtree("/usr/share/doc")
            root.rename("/usr/lib/apt", "/usr/lib/moved")
            root.write_text("/etc/hostname", "changed\n")
            with root.open("/bin/bash", "r+b") as file:
                file.seek(1 << 20)
                file.write(b"x" * 5000)
            root.chmod("/usr/bin/perl", 0o700)  # one of two names
            root.link("/bin/sh", "/srv/shell")
            root.set_xattr("/bin/dash", b"user.note", b"1")
            root.chown("/var/lib/dpkg", 1000, 1000)
            root.rmtree("/var/cache")
            root.mkdir("/var/cache")
            root.mknod("/dev/made", Kind.CHAR, 0o666, (1, 5))
            digest = root.commit("debian:2")
            expected = rootfs.describe(root.fs)
        skopeo.pull(f"{service.host}/debian:2", tmp_path / "pulled")
        assert read_image(tmp_path / "pulled").manifest.digest == str(digest)
        found = umoci.unpack(tmp_path / "pulled", "latest", tmp_path)
        assert rootfs.equal(expected, found) == {}
        with client.image("debian:2").open() as again:
            assert rootfs.equal(rootfs.describe(again.fs), found) == {}
    assert program("diff", "--pool", tmp_path / "client", "debian:2", tmp_path / "upper", server=service.url) == ""


def test_a_file_that_is_nearly_all_hole(service: Service, tmp_path: Path) -> None:
    """Its layer is small; umoci, podman and mounts show what the overlay did, and pools hold no zeros of it."""
    with httpx.Client(base_url=service.url) as http:
        push_layers(http, "tools", "1", [busybox(), make_tar({"srv/.keep": b""})])
    pieces = {5: b"first", 150 << 20: b"middle", (300 << 20) - 4: b"last"}
    with pagepool.Client(service.url, directory=tmp_path / "client") as client:
        with client.image("tools:1").overlay(tmp_path / "upper") as root:
            with root.open("/srv/größe.img", "wb", buffering=0) as file:
                for offset, data in pieces.items():
                    file.seek(offset)
                    file.write(data)
            root.commit("holes:1")
            expected = rootfs.describe(root.fs)
        program("diff", "--tar", tmp_path / "layer.tar", "--pool", tmp_path / "client", tmp_path / "upper")
        assert (tmp_path / "layer.tar").stat().st_size < 1 << 16
        with client.image("holes:1").overlay(tmp_path / "again") as root:
            found = root.stat("/srv/größe.img")
            assert (found.size, found.blocks) == (300 << 20, 3 * EXTENT_SIZE // 512)
            root.chmod("/srv/größe.img", 0o600)  # of an image's file, too
            assert sum(map(len, root.diff())) < 5 * EXTENT_SIZE
    skopeo.pull(f"{service.host}/holes:1", tmp_path / "pulled")
    assert rootfs.equal(expected, umoci.unpack(tmp_path / "pulled", "latest", tmp_path)) == {}
    script = (
        "dd if=/srv/größe.img bs=1 skip=157286400 count=6 2>/dev/null; sha256sum < /srv/größe.img; stat -c %s /srv/*"
    )
    digest = sha256_of(300 << 20, pieces)
    with own_storage() as podman:
        name = f"{service.host}/holes:1"
        podman.podman("pull", "--quiet", "--tls-verify=false", name)
        said = podman.podman("run", "--rm", "--network=none", name, "/bin/sh", "-ec", script)
        assert said == f"middle{digest}  -\n{300 << 20}\n"
    with running_node(tmp_path) as node:
        (tmp_path / "mnt").mkdir()
        with node.mount(service.url, Reference.parse("holes:1"), tmp_path / "mnt", KernelMountOptions(eager=True)):
            with (tmp_path / "mnt/srv/größe.img").open("rb") as opened:
                assert hashlib.file_digest(opened, "sha256").hexdigest() == digest
            assert (tmp_path / "mnt/srv/größe.img").stat().st_blocks * 512 < 8 * EXTENT_SIZE


def sha256_of(size: int, pieces: dict[int, bytes]) -> str:
    """Of a file with these pieces, and zeros between them."""
    content = bytearray(size)
    for offset, data in pieces.items():
        content[offset : offset + len(data)] = data
    return hashlib.sha256(content).hexdigest()
