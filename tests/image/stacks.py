"""Stacks of layers that exercise every rule of merging, the lowest layer first."""

from __future__ import annotations

from tests.image.harness import END, make_extension, make_file, make_header, make_pax, make_records

T = 1_600_000_000


def directory(name: bytes, mode: int = 0o755, uid: int = 0, gid: int = 0) -> bytes:
    return make_header(name + b"/", 0, b"5", mode=mode, uid=uid, gid=gid, mtime=T)


def file(name: bytes, data: bytes = b"", **fields: int) -> bytes:
    return make_file(name, data, mtime=T + 1, **fields)


def symlink(name: bytes, target: bytes) -> bytes:
    return make_header(name, 0, b"2", link=target, mode=0o777, mtime=T + 2)


def hardlink(name: bytes, target: bytes) -> bytes:
    return make_header(name, 0, b"1", link=target, mtime=T + 3)


def whiteout(name: bytes) -> bytes:
    parent, _, base = name.rpartition(b"/")
    return file((parent + b"/" if parent else b"") + b".wh." + base)


def opaque(name: bytes) -> bytes:
    return file(name + b"/.wh..wh..opq" if name else b".wh..wh..opq")


def layer(*members: bytes) -> bytes:
    return b"".join(members) + END


BASE = layer(
    directory(b"."),
    directory(b"a", 0o750, uid=1, gid=2),
    file(b"a/one", b"one", uid=3),
    file(b"a/two", b"two"),
    directory(b"a/sub"),
    file(b"a/sub/deep", b"deep"),
    directory(b"usr"),
    directory(b"usr/lib", 0o1777),
    file(b"usr/lib/x", b"lib"),
    symlink(b"lib", b"usr/lib"),
    symlink(b"abs", b"/usr/lib"),
    hardlink(b"a/three", b"a/two"),
    make_header(b"null", 0, b"3", mode=0o666, major=1, minor=3, mtime=T),
    make_header(b"loop0", 0, b"4", mode=0o660, major=7, minor=0, mtime=T),
    make_header(b"pipe", 0, b"6", mode=0o600, mtime=T),
    file(b"suid", b"s", mode=0o4755),
)

STACKS: dict[str, list[bytes]] = {
    "empty": [END],
    "base": [BASE],
    "absolute names": [layer(directory(b"/a"), file(b"/a/b", b"1"), hardlink(b"/c", b"/a/b"), file(b"./d", b"2"))],
    "implicit parents": [layer(file(b"x/y/z", b"1"), directory(b"x/y", 0o700))],
    "implicit parents below setgid": [
        layer(directory(b"s", 0o2770, gid=7), file(b"s/x/y/z", b"1")), layer(file(b"s/v/w", b"1")),
    ],
    "metadata only": [BASE, layer(directory(b"a", 0o711, uid=9), directory(b"."))],
    "replace a file": [BASE, layer(file(b"a/one", b"ONE!", uid=5))],
    "replace one of two links": [BASE, layer(file(b"a/two", b"TWO!"))],
    "whiteout of a file": [BASE, layer(whiteout(b"a/one"))],
    "whiteout of a link": [BASE, layer(whiteout(b"a/three"))],
    "whiteout of a directory": [BASE, layer(whiteout(b"a"))],
    "whiteout of nothing": [BASE, layer(whiteout(b"a/none"), whiteout(b"none/none"), whiteout(b"a/one/none"))],
    "whiteout of a symlink": [BASE, layer(whiteout(b"lib"))],
    "whiteout through a symlink": [BASE, layer(whiteout(b"lib/x"))],
    "whiteout spares its own layer": [BASE, layer(file(b"a/one", b"new"), whiteout(b"a/one"))],
    "whiteout before": [BASE, layer(whiteout(b"a"), directory(b"a", 0o700), file(b"a/new", b"n"))],
    "whiteout after": [BASE, layer(directory(b"a", 0o700), file(b"a/new", b"n"), whiteout(b"a"))],
    "whiteout after a deep file": [BASE, layer(file(b"a/sub/new", b"n"), whiteout(b"a"))],
    "opaque": [BASE, layer(directory(b"a"), opaque(b"a"), file(b"a/new", b"n"))],
    "opaque at the end": [BASE, layer(directory(b"a"), file(b"a/sub/new", b"n"), opaque(b"a"))],
    "opaque root": [BASE, layer(file(b"new", b"n"), opaque(b""))],
    "opaque through a symlink": [BASE, layer(opaque(b"lib"))],
    "opaque of nothing": [BASE, layer(opaque(b"none"), opaque(b"a/one"))],
    "whiteouts reach two layers down": [BASE, layer(file(b"a/new", b"n")), layer(opaque(b"a"), whiteout(b"usr"))],
    "back after a whiteout": [BASE, layer(whiteout(b"a")), layer(file(b"a/one", b"again"))],
    "file over directory": [BASE, layer(file(b"a", b"flat"))],
    "directory over file": [BASE, layer(directory(b"a/one"), file(b"a/one/in", b"1"))],
    "directory over symlink": [BASE, layer(directory(b"lib"), file(b"lib/y", b"y"))],
    "symlink over directory": [BASE, layer(symlink(b"a", b"usr"))],
    "symlink over file, then file": [BASE, layer(symlink(b"a/one", b"two")), layer(file(b"a/one", b"1"))],
    "device over file": [BASE, layer(make_header(b"a/one", 0, b"3", major=1, minor=5, mtime=T))],
    "file through a symlink": [BASE, layer(file(b"lib/new", b"n"), file(b"abs/new2", b"n"))],
    "symlink with permissions": [layer(make_header(b"s", 0, b"2", link=b"x", mode=0o640, mtime=T))],
    "symlink in the same layer": [layer(directory(b"d"), symlink(b"s", b"d"), file(b"s/f", b"1"))],
    "dangling symlink": [layer(symlink(b"s", b"gone/../there"), file(b"s/f", b"1"))],
    "symlink out of the root": [layer(symlink(b"s", b"../../../etc"), file(b"s/f", b"1"), file(b"etc/g", b"2"))],
    "link to a lower file": [BASE, layer(hardlink(b"one", b"a/one"))],
    "link through a symlink": [BASE, layer(hardlink(b"x2", b"lib/x"), hardlink(b"lib/x3", b"abs/x"))],
    "link to a symlink": [BASE, layer(hardlink(b"lib2", b"lib"))],
    "links to what is no file, over layers": [
        BASE,
        layer(hardlink(b"lib2", b"lib"), hardlink(b"null2", b"null"), hardlink(b"pipe2", b"pipe")),
        layer(hardlink(b"lib3", b"lib2"), whiteout(b"lib"), file(b"null", b"1"), hardlink(b"pipe3", b"pipe2")),
    ],
    "link replaces": [BASE, layer(hardlink(b"a/one", b"a/two"))],
    "link to what is replaced later": [BASE, layer(hardlink(b"old", b"a/one"), file(b"a/one", b"new"))],
    "last of duplicates": [layer(file(b"f", b"1"), symlink(b"f", b"g"), file(b"f", b"3"), hardlink(b"g", b"f"))],
    "duplicates with links": [layer(file(b"f", b"1"), hardlink(b"g", b"f"), file(b"f", b"2"))],
    "xattrs": [
        layer(
            make_pax(**{"SCHILY__xattr__user__a": b"1", "SCHILY__xattr__user__b": b"\0\xff"}), file(b"f", b"1"),
            make_pax(**{"SCHILY__xattr__user__d": b"d", "SCHILY__xattr__security__selinux": b"no"}), directory(b"d"),
        ),
        layer(make_pax(**{"SCHILY__xattr__user__e": b"e"}), directory(b"d")),
    ],
    "capability": [
        layer(
            make_extension(b"x", make_records([
                (b"SCHILY.xattr.security.capability", bytes.fromhex("0100000200040000000000000000000000000000")),
            ])),
            file(b"ping", b"1"),
        )
    ],
    "long names": [layer(make_extension(b"L", b"n" * 255 + b"/" + b"m" * 255), file(b"n", b"1"))],
    "longest target": [layer(make_extension(b"K", b"t" * 4095), symlink(b"s", b"t"))],
    "many layers": [
        layer(
            file(b"same", b"%d" % number), file(b"d/f%d" % number, b"%d" % (number % 7)),
            whiteout(b"d/f%d" % (number - 1)), whiteout(b"l%d" % (number - 5)),
            opaque(b"d") if number % 10 == 0 else hardlink(b"l%d" % number, b"same"),
            file(b"turns", b"1") if number % 2 else directory(b"turns"),
        )
        for number in range(1, 128)
    ],
    "a directory with the name of a whiteout": [BASE, layer(file(b"a/.wh.one/in", b"1"))],
    "whiteout of the longest name": [
        layer(make_extension(b"L", b"n" * 255), file(b"n", b"1"), file(b"f", b"1")),
        layer(make_extension(b"L", b".wh." + b"n" * 255), file(b"w")),
    ],
    "large owners and times": [
        layer(make_pax(uid=b"4000000000", gid=b"2147483648", mtime=b"-5.25"), file(b"f", b"1"))
    ],
    "numbers with zeros before them": [
        layer(make_pax(size=b"0" * 23 + b"1", uid=b"0" * 99 + b"7", mtime=b"-000000000000000000005"), file(b"f", b"1"))
    ],
}  # fmt: skip

REFUSED: dict[str, tuple[list[bytes], str]] = {
    "link to nothing": (
        [BASE, layer(hardlink(b"x", b"a/none"))],
        "a hard link to 'a/none', which is not there",
    ),
    "link to itself": (
        [layer(file(b"x", b"1"), hardlink(b"x", b"x"))],
        "a hard link to 'x', which is not there",
    ),
    "link to a directory": ([BASE, layer(hardlink(b"x", b"a"))], "a hard link to 'a', which is a directory"),
    "link to what was removed": ([BASE, layer(whiteout(b"a"), hardlink(b"x", b"a/one"))], "which is not there"),
    "link to a later member": ([layer(hardlink(b"x", b"y"), file(b"y", b"1"))], "which is not there"),
    "loop": (
        [layer(symlink(b"p", b"q"), symlink(b"q", b"p"), file(b"p/f", b"1"))],
        "is behind a loop of symbolic links",
    ),
}
