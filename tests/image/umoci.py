"""The same image on disk by `umoci unpack`, and as a tree, in one form to compare."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from pagepool.image import Kind, Node, iter_members, merge_layers
from tests.image.harness import ingest

needs_umoci = [
    pytest.mark.skipif(shutil.which("umoci") is None, reason="needs umoci"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: umoci unpack makes devices and owners"),
]

KINDS = {
    stat.S_IFREG: Kind.REGULAR,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}
# (kind, mode, uid, gid, mtime, content or target or device, xattrs, names of the same inode)
Row = tuple[Kind, int, int, int, int, object, dict[bytes, bytes], frozenset[bytes]]


def write_layout(root: Path, layers: Sequence[bytes], stored: Sequence[tuple[bytes, str]] | None = None) -> None:
    """An image, tag ``latest``.

    Args:
        layers: plain tars.
        stored: of each the blob, and what its media type ends in; plain tars without it.
    """
    blobs = root / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    entries = [put(blob, f"layer.v1.{ending}") for blob, ending in stored or [(tar, "tar") for tar in layers]]
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in layers]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs, "config": {}}).encode()
    manifest = json.dumps({"schemaVersion": 2, "config": put(config, "config.v1+json"), "layers": entries}).encode()
    described = put(manifest, "manifest.v1+json") | {"annotations": {"org.opencontainers.image.ref.name": "latest"}}
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def unpack(tmp_path: Path, layers: Sequence[bytes]) -> subprocess.CompletedProcess[str]:
    write_layout(tmp_path / "layout", layers)
    command = ["umoci", "unpack", "--image", f"{tmp_path}/layout:latest", f"{tmp_path}/bundle"]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", umask=0o022, check=False)


def read_disk(root: Path) -> dict[bytes, Row]:
    names = {os.fsencode(path.relative_to(root)): path for path in [root, *root.rglob("*")]}
    inodes: dict[int, set[bytes]] = defaultdict(set)
    for name, path in names.items():
        inodes[path.lstat().st_ino].add(name)
    return {name: _read_inode(path, inodes) for name, path in names.items()}


def _read_inode(path: Path, inodes: dict[int, set[bytes]]) -> Row:
    status = path.lstat()
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    content: object = None
    if kind is Kind.REGULAR:
        content = path.read_bytes()
    elif kind is Kind.SYMLINK:
        content = os.readlink(os.fsencode(path))  # noqa: PTH115  (Path would tidy it up)
    elif kind in (Kind.CHAR, Kind.BLOCK):
        content = (os.major(status.st_rdev), os.minor(status.st_rdev))
    xattrs = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in _list_xattrs(path)}
    mode = stat.S_IMODE(status.st_mode)
    return (
        kind, mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, xattrs, frozenset(inodes[status.st_ino]),
    )  # fmt: skip


def _list_xattrs(path: Path) -> list[str]:
    return [name for name in os.listxattr(path, follow_symlinks=False) if name != "security.selinux"]


def read_tree(layers: Sequence[bytes]) -> dict[bytes, Row]:
    sinks = [ingest(tar) for tar in layers]
    objects = {digest: data for sink in sinks for digest, data in sink.objects.items()}
    tree = merge_layers(iter_members(sink.decoded) for sink in sinks)
    inodes: dict[int, set[bytes]] = defaultdict(set)
    for path, node in tree.walk():
        inodes[node.number].add(path or b".")
    return {path or b".": _read_node(node, objects, inodes) for path, node in tree.walk()}


def _read_node(node: Node, objects: dict[bytes, bytes], inodes: dict[int, set[bytes]]) -> Row:
    content: object = None
    if node.kind is Kind.REGULAR:
        content = objects[node.object] if node.object else b""
        assert len(content) == node.size
    elif node.kind is Kind.SYMLINK:
        content = node.target
    elif node.kind in (Kind.CHAR, Kind.BLOCK):
        content = (node.devmajor, node.devminor)
    names = frozenset(inodes[node.number])
    assert node.kind is Kind.DIRECTORY or node.nlink == len(names)
    return (node.kind, node.mode, node.uid, node.gid, node.mtime_ns, content, dict(node.xattrs), names)


def check_same(tmp_path: Path, layers: Sequence[bytes]) -> None:
    """The tree of these layers is what umoci makes of them; umoci must not refuse them."""
    started = time.time_ns() - 10**9
    done = unpack(tmp_path, layers)
    assert done.returncode == 0, done.stderr
    expected = read_disk(tmp_path / "bundle" / "rootfs")
    found = read_tree(layers)
    for path, row in expected.items():
        # What unpacking itself does to the times of directories: those that no member describes, and those in which
        # it had to make or remove something.
        if row[0] is Kind.DIRECTORY and row[4] >= started and path in found:
            expected[path] = (*row[:4], found[path][4], *row[5:])
    assert found == expected
