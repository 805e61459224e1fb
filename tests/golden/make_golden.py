"""Makes the golden files beside it. Run once, look at what came out, commit it; the tests never run it.

``tars/NAME.tar`` are layers that real writers made, ``tars/NAME.txt`` what is in them, a line a member.
``tars/should-fail-NAME.tar`` are layers that must not be mounted, ``tars/should-fail.txt`` the reason for each.
``recipe-v1.chunk`` and ``recipe-v1.txt`` are an encoded recipe chunk of version 1 and its operations,
``tree-v1.tree`` and ``tree-v1.txt`` a tree file of version 1 and its records, ``tree-v1.dump`` its dump, and
``erofs-v1.img`` its EROFS image.

Needs GNU tar and bsdtar, and a file system with sparse files and user xattrs. From the top of the repository::

    PYTHONPATH=client:. python tests/golden/make_golden.py
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from pagepool.image import RecipeWriter, TreeFile, decode_chunk, encode_tree
from pagepool.image.treedump import dump_tree
from tests.image.erofs import make_image
from tests.image.harness import END, make_extension, make_file, make_header, make_pax
from tests.image.test_golden import GOLDEN, describe_member, describe_op, reason_of, split
from tests.image.test_layer import PROBLEMS
from tests.image.test_sparse import make_01, make_10, make_old_gnu
from tests.image.test_treefile import runs_of
from tests.image.test_treefile_golden import golden_tree, read_by_the_page

GNU = ["tar", "--sort=name", "--owner=me:1000", "--group=us:100", "--blocking-factor=1", "-c", "-f", "-"]
BSD = ["bsdtar", "--uid=1000", "--uname=me", "--gid=100", "--gname=us", "-b", "1", "-c", "-f", "-"]
PLAIN = ["--pax-option=delete=atime,delete=ctime"]
WRITERS = {
    "gnu-v7": [*GNU, "--format=v7", "short"],
    "gnu-ustar": [*GNU, "--format=ustar", "short"],
    "gnu-oldgnu-sparse": [*GNU, "--format=oldgnu", "--sparse", "short", "long", "holes"],
    "gnu-gnu": [*GNU, "--format=gnu", "short", "long"],
    "gnu-posix": [*GNU, "--format=posix", "--xattrs", *PLAIN, "short", "long"],
    "gnu-sparse-0.0": [*GNU, "--format=posix", "--sparse", "--sparse-version=0.0", *PLAIN, "holes"],
    "gnu-sparse-0.1": [*GNU, "--format=posix", "--sparse", "--sparse-version=0.1", *PLAIN, "holes"],
    "gnu-sparse-1.0": [*GNU, "--format=posix", "--sparse", "--sparse-version=1.0", *PLAIN, "holes"],
    "bsd-v7": [*BSD, "--format=v7", "short"],
    "bsd-ustar": [*BSD, "--format=ustar", "short"],
    "bsd-gnutar": [*BSD, "--format=gnutar", "short", "long"],
    "bsd-pax": [*BSD, "--format=pax", "short", "long", "holes"],
}
SPARSE_PROBLEMS = {
    "overlap": make_old_gnu(b"bad", 1000, [(0, 500), (400, 100)], b"x" * 600),
    "map-size": make_10(b"bad", 1000, [(0, 100)], b"x" * 99),
    "claim": make_01(b"bad", 1 << 50, [(0, 100)], b"x" * 100),
}


def grow(root: Path) -> None:
    """The files that the writers are given."""
    short = root / "short"
    long = root / "long" / ("d" * 120)
    holes = root / "holes"
    for directory in (short, long, holes):
        directory.mkdir(parents=True)
    (short / "file").write_bytes(b"content\n")
    os.setxattr(short / "file", "user.note", b"a value\n")
    (short / "hard").hardlink_to(short / "file")
    (short / "soft").symlink_to("file")
    with (holes / "sparse").open("wb") as out:
        for place in range(5):
            out.seek(place * 8192)
            out.write(b"%d" % place * 300)
        out.truncate(50_000)
    with (holes / "empty").open("wb") as out:
        out.truncate(50_000)
    (long / ("n" * 150)).symlink_to("t" * 150)
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, ns=(0, 1_700_000_000_500_000_000), follow_symlinks=False)


def make_tars() -> None:
    """Golden layers, and their listings."""
    with tempfile.TemporaryDirectory() as directory:
        grow(Path(directory))
        for name, command in WRITERS.items():
            tar = subprocess.run(command, cwd=directory, capture_output=True, check=True).stdout
            sink = split(tar)
            assert not sink.problem, sink.problem
            (GOLDEN / "tars" / f"{name}.tar").write_bytes(tar)
            (GOLDEN / "tars" / f"{name}.txt").write_text("".join(describe_member(sink, row) for row in sink.members))


def make_failures() -> None:
    """Layers that must not be mounted, and why."""
    tars = {
        row[0].replace(" ", "-"): row[1] for row in PROBLEMS if len(row[1]) <= 8192 and row[0] != "large member"
    } | SPARSE_PROBLEMS
    lines = []
    for name, tar in sorted(tars.items()):
        (GOLDEN / "tars" / f"should-fail-{name}.tar").write_bytes(tar)
        lines.append(f"{name}: {reason_of(tar)}\n")
    (GOLDEN / "tars" / "should-fail.txt").write_text("".join(lines))


def make_recipe() -> None:
    """One chunk with every kind of operation."""
    digests = [bytes([value]) * 32 for value in b"abc"]
    writer = RecipeWriter()
    for number in range(40):
        writer.append_literal(make_header(b"dir/name-%d" % number, 1000 + number, mtime=1_700_000_000))
        writer.append_object(digests[number % 2], 1000 + number)
        writer.append_literal(bytes(-(1000 + number) % 512))
    writer.append_literal(make_pax(path=b"sparse") + make_extension(b"L", b"x"))
    writer.append_slice(digests[2], 1 << 33, 4096)
    writer.append_slice(digests[2], 0, 0)
    writer.append_object(digests[0], 1 << 40)
    writer.append_literal(make_file(b"kept", b"literal") + END)
    writer.finish()
    chunk = writer.take_chunk()
    assert chunk is not None
    (GOLDEN / "recipe-v1.chunk").write_bytes(chunk.payload)
    (GOLDEN / "recipe-v1.txt").write_text("".join(describe_op(op) for op in decode_chunk(chunk.payload)))


def make_tree_file() -> None:
    """A tree with every kind of node, and what it says."""
    raw = encode_tree(golden_tree(), runs_of)
    (GOLDEN / "tree-v1.tree").write_bytes(raw)
    (GOLDEN / "tree-v1.txt").write_text(read_by_the_page(raw))
    (GOLDEN / "tree-v1.dump").write_text("".join(f"{line}\n" for line in dump_tree(TreeFile(raw))))
    (GOLDEN / "erofs-v1.img").write_bytes(make_image(TreeFile(raw), 4096)[0])


if __name__ == "__main__":
    make_tars()
    make_failures()
    make_recipe()
    make_tree_file()
