"""EROFS images as the kernel and fsck.erofs see them: every inode of every tree, bare and below overlayfs."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pagepool.digest import blake3_raw
from pagepool.image import Kind, Node, Tree, TreeFile, TreeMerger, encode_tree, iter_members
from tests.image.erofs import check_with_fsck, compare, content_of, make_image, mounted, needs
from tests.image.harness import ingest
from tests.image.stacks import STACKS
from tests.image.test_treefile import make_tree, runs_of
from tests.image.test_treefile_golden import golden_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ACL = bytes.fromhex("02000000 01000700ffffffff 02000500e8030000 04000500ffffffff 10000500ffffffff 20000000ffffffff")
BAD = (b"\1\0\0\0", bytes(range(20)))
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def file_of(size: int, name: str = "", **fields: object) -> Node:
    """A file with an object of its own."""
    digest = blake3_raw(f"{name} {size}".encode()) if size else None
    return Node(Kind.REGULAR, 0o644, size=size, object=digest, **fields)  # type: ignore[arg-type]


def corner_tree() -> Tree:
    """What is at an edge of the format: sizes about a block, full directories, many and large attributes, odd ids."""
    sizes = {f"s{size}".encode(): file_of(size) for size in (0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096)}
    sizes |= {f"s{size}".encode(): file_of(size) for size in (4097, 6144, 6145, 8192, 12000, 131_073, 1 << 40)}
    tool = file_of(5, xattrs={b"security.capability": CAPABILITY, b"user.one": b"1"})
    others = {
        b"again": tool,
        b"tool": tool,
        b"same": file_of(5, xattrs={b"security.capability": CAPABILITY}),
        b"copy": file_of(70_000, "c", xattrs={b"security.capability": CAPABILITY}),
        b"copy2": file_of(70_000, "c"),
        b"acl": file_of(9, xattrs={b"system.posix_acl_access": ACL}),
        b"bad acl": file_of(9, xattrs={b"system.posix_acl_access": b"\1\0\0\0", b"nobody.knows": b"1", b"user.": b""}),
        b"acls": Node(Kind.DIRECTORY, 0o755, children={}, xattrs={b"system.posix_acl_default": ACL, b"user.x": b""}),
        b"own": file_of(5000, "o", xattrs={b"trusted.overlay.redirect": b"/x", b"trusted.overlay.overlay.a": b"b"}),
        b"opaque": Node(Kind.DIRECTORY, 0o700, children={b"in": file_of(3)}, xattrs={b"trusted.overlay.opaque": b"y"}),
        b"heavy": file_of(600, "h", xattrs={f"user.{n}".encode(): bytes([n]) * 900 for n in range(9)}),
        b"heavier": file_of(6000, "h", xattrs={b"user.v": b"v" * 65_535, b"user.w" + b"w" * 249: b""}),
        b"many": file_of(2, xattrs={f"user.{n}".encode(): b"1" for n in range(300)}),
        b"many2": file_of(2, xattrs={f"user.{n}".encode(): b"1" for n in range(300)}),
        b"far": Node(Kind.SYMLINK, 0o777, size=4095, target=b"a/" * 2047 + b"b"),
        b"near": Node(Kind.SYMLINK, 0o777, size=2048, target=b"a" * 2048),
        b"heavy link": Node(Kind.SYMLINK, 0o777, size=9, target=b"some/path", xattrs={b"trusted.x": b"y" * 4090}),
        b"whiteout": Node(Kind.CHAR, 0o600),
        b"full": Node(Kind.DIRECTORY, 0o755, children={f"{n:06}".encode(): file_of(1) for n in range(3000)}),
        b"exact": Node(Kind.DIRECTORY, 0o755, children={f"{n:0100}".encode(): file_of(1) for n in range(36)}),
        b"odd": Node(Kind.DIRECTORY, 0o755, children={b"!": file_of(1), b"..a": file_of(1), b"-": file_of(1)}),
        b"late": file_of(0, mtime_ns=2**33 * 10**9 + 999_999_999),
        b"ids": file_of(1, uid=65_536, gid=65_535),
        b"max": Node(Kind.BLOCK, 0o7777, uid=2**32 - 2, gid=2**32 - 2, devmajor=4095, devminor=1_048_575),
    }
    others[b"full"].children[b"z" * 255] = file_of(1)  # type: ignore[index]
    return Tree(Node(Kind.DIRECTORY, 0o1777, children={**sizes, **others}))


def without_whiteouts(tree: Tree) -> Tree:
    """The tree as overlayfs can show it."""
    for _, node in tree.walk():
        for name, child in list((node.children or {}).items()):
            if child.kind is Kind.CHAR and not (child.devmajor or child.devminor):
                del node.children[name]  # type: ignore[union-attr]
    return tree


def as_kept(tree: TreeFile, number: int) -> dict[bytes, bytes]:
    """What of a node's attributes can be kept: setxattr(2) takes no others."""
    found = tree.xattrs(number)
    unknown = [name for name in found if name in (b"nobody.knows", b"user.") or found[name] in BAD]
    if tree.kind(number) not in (Kind.DIRECTORY, Kind.REGULAR):
        unknown += [name for name in found if name.startswith(b"user.")]
    return {name: value for name, value in found.items() if name not in unknown}


def random_tree(seed: int) -> Tree:
    """A random tree whose symlinks could be made."""
    tree = make_tree(seed, 400)
    for _, node in tree.walk():
        node.target = node.target.replace(b"\0", b"0")
    return tree


def stacked(layers: Sequence[bytes]) -> Tree:
    """The tree of a stack of layers."""
    merger = TreeMerger()
    for tar in layers:
        merger.apply_layer(iter_members(ingest(tar).decoded))
    return merger.finish()


TREES: dict[str, Callable[[], Tree]] = {
    "golden": golden_tree,
    "corners": corner_tree,
    **{f"random {seed}": partial(random_tree, seed) for seed in range(4)},
    **{name: partial(stacked, layers) for name, layers in STACKS.items()},
}


@needs("erofs")
@pytest.mark.parametrize("inline_max", [0, 1024, 5000])
@pytest.mark.parametrize("name", TREES)
def test_kernel_sees_the_tree(tmp_path: Path, name: str, inline_max: int) -> None:
    """Every inode's mode, owner, links, size, time, device, target, attributes and content, and whose number it has."""
    tree = TREES[name]()
    file = TreeFile(encode_tree(tree, runs_of))
    image, info = make_image(file, inline_max)
    path = tmp_path / "image"
    path.write_bytes(image)
    check_with_fsck(path)
    assert len(image) == info.size
    shown = TreeFile(encode_tree(without_whiteouts(tree), runs_of))
    same = shown.node_count == file.node_count
    assert info.nodes == shown.node_count

    def xattrs(number: int) -> dict[bytes, bytes]:
        found = {}
        for key, value in as_kept(shown, number).items():
            at = len(b"trusted.overlay.") if key.startswith(b"trusted.overlay.") else 0
            found[key[:at] + (b"overlay." if at else b"") + key[at:]] = value
        node = shown.node(number)
        if node.kind is Kind.REGULAR and node.size > inline_max:
            digest = shown.object(node.object).digest.hex().encode()
            found[b"trusted.overlay.metacopy"] = b""
            found[b"trusted.overlay.redirect"] = b"/" + digest[:2] + b"/" + digest[2:]
        return found

    with mounted("erofs", str(path), tmp_path / "at", "ro") as at:
        compare(shown, os.fsencode(at), xattrs, inline_max, image if same else None)


@needs("erofs", "overlay")
@pytest.mark.parametrize("inline_max", [0, 1024])
@pytest.mark.parametrize("name", ["golden", "corners", "random 1"])
def test_overlay_sees_the_tree(tmp_path: Path, name: str, inline_max: int) -> None:
    """Below overlayfs the tree is as it was: its own overlay attributes too, and content out of a data layer."""
    tree = without_whiteouts(TREES[name]())
    file = TreeFile(encode_tree(tree, runs_of))
    (tmp_path / "image").write_bytes(make_image(file, inline_max)[0])
    for index in range(file.object_count):
        info = file.object(index)
        path = tmp_path / "data" / info.digest.hex()[:2] / info.digest.hex()[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        if info.size < 1 << 20:
            path.write_bytes(content_of(info.digest, info.size))
    (tmp_path / "data").mkdir(exist_ok=True)
    with mounted("erofs", str(tmp_path / "image"), tmp_path / "meta", "ro") as meta:
        options = f"ro,lowerdir={meta}::{tmp_path / 'data'},metacopy=on,redirect_dir=on"
        with mounted("overlay", "pagepool-test", tmp_path / "at", options) as at:
            compare(file, os.fsencode(at), lambda number: as_kept(file, number), 1 << 20)
