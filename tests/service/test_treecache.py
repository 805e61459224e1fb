"""Files about trees: a cache that forgets, and never tells anything wrong."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import InvalidError
from pagepool.image import Kind, Node, Tree, encode_tree
from pagepool_service import treecache
from pagepool_service.treecache import TreeCache
from pagepool_service.treeorigins import TreeOrigin

_ROOT = Path(__file__).parents[2]


def make_tree(number: int, size: int = 0) -> tuple[bytes, bytes]:
    """Digest and file of a tree; of about so many bytes."""
    root = Node(Kind.DIRECTORY, 0o755, uid=number, children={}, xattrs={b"user.x": bytes(size)})
    raw = encode_tree(Tree(root), lambda _digest, _size: [])
    return blake3_raw(raw), raw


def origin(number: int, first: int | None = None) -> TreeOrigin:
    return TreeOrigin(Digest.of(b"%d" % number), first)


def test_trees_come_back(tmp_path: Path) -> None:
    """As they were put in, for another cache over the same directory, too."""
    digest, raw = make_tree(1)
    TreeCache(tmp_path / "trees").keep(digest, raw)
    found = TreeCache(tmp_path / "trees").load(digest)
    assert found is not None
    assert (found.digest, bytes(found.raw)) == (digest, raw)
    assert TreeCache(tmp_path / "trees").load(make_tree(2)[0]) is None
    assert TreeCache(tmp_path / "nowhere").load(digest) is None


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_damage_is_gone(tmp_path: Path, damage: str) -> None:
    """A file that is not what its name says is removed, so that it is made again."""
    cache = TreeCache(tmp_path)
    digest, raw = make_tree(1)
    cache.keep(digest, raw)
    path = tmp_path / digest.hex()
    path.write_bytes({"cut": raw[:-1], "changed": bytes([raw[0] ^ 1]) + raw[1:], "emptied": b""}[damage])
    assert cache.load(digest) is None
    assert not path.exists()
    cache.keep(digest, raw)
    assert cache.load(digest) is not None


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    """Within the budget, and never the one that was just put in; what is too large is not kept at all."""
    trees = [make_tree(number, 1000) for number in range(5)]
    size = len(trees[0][1])
    cache = TreeCache(tmp_path, 3 * size)
    for age, (digest, raw) in enumerate(trees[:3]):
        cache.keep(digest, raw)
        os.utime(tmp_path / digest.hex(), ns=(0, 10**9 * age))
    assert cache.load(trees[0][0]) is not None  # used: it is the youngest now
    cache.keep(*trees[3])
    assert [cache.load(digest) is not None for digest, _ in trees] == [True, False, True, True, False]
    cache.keep(*make_tree(9, 5000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 3 * size


def test_links(tmp_path: Path) -> None:
    """A repository has a tree through the manifests that were noted, the last one first, and no other has it."""
    cache = TreeCache(tmp_path)
    tree = make_tree(1)[0]
    for number in (1, 2, 1, 3):
        cache.link("team/app", tree, origin(number))
    assert cache.origins("team/app", tree) == [origin(3), origin(2), origin(1)]
    assert cache.origins("team/other", tree) == []
    assert cache.origins("team/app", make_tree(2)[0]) == []


def test_links_do_not_grow_without_end(tmp_path: Path) -> None:
    """The last ones are kept."""
    cache = TreeCache(tmp_path)
    tree = make_tree(1)[0]
    for number in range(200):
        cache.link("app", tree, origin(number))
        assert cache.origins("app", tree)[0] == origin(number)
    assert 10 <= len(cache.origins("app", tree)) <= 32


def test_torn_links(tmp_path: Path) -> None:
    """A line that was cut short, or is not one, is passed over."""
    cache = TreeCache(tmp_path)
    tree = make_tree(1)[0]
    cache.link("app", tree, origin(1))
    (path,) = (tmp_path / "links").iterdir()
    path.write_bytes(b"\xff\0\n" + path.read_bytes() + f"{origin(2)}"[:-5].encode() + b"\n")
    assert cache.origins("app", tree) == [origin(1)]


def test_links_of_the_first_layers(tmp_path: Path) -> None:
    """They are others than those of all, and no digests: what knows only these passes them over."""
    cache = TreeCache(tmp_path)
    tree = make_tree(1)[0]
    linked = [origin(1), origin(1, 12), origin(1, 2), origin(2, 1)]
    for one in linked:
        cache.link("app", tree, one)
    assert cache.origins("app", tree) == linked[::-1]
    (path,) = (tmp_path / "links").iterdir()
    lines = [line for line in path.read_text().split("\n") if line]
    assert lines == [str(one) for one in linked]
    assert lines[0] == str(origin(1).manifest)
    for line in lines[1:]:
        with pytest.raises(InvalidError):
            Digest.parse(line)


def test_a_torn_link_is_no_other(tmp_path: Path) -> None:
    """Wherever it was cut, and whatever was written behind it."""
    cache = TreeCache(tmp_path)
    tree = make_tree(1)[0]
    cache.link("app", tree, origin(1))
    (path,) = (tmp_path / "links").iterdir()
    whole = path.read_bytes()
    for length in range(len(str(origin(2, 12)))):
        path.write_bytes(whole + str(origin(2, 12)).encode()[:length])
        cache.link("app", tree, origin(3))
        assert cache.origins("app", tree) == [origin(3), origin(1)]


@pytest.mark.parametrize("text", ["", "/", "0/{}", "01/{}", "-1/{}", "1/2/{}", "x/{}", "1/", "1/{}/", "9999999999/{}"])
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(InvalidError):
        TreeOrigin.parse(text.format(origin(1).manifest))


def test_which_tree_the_first_layers_have(tmp_path: Path) -> None:
    """That, and why they have none, is noted of each number by itself."""
    cache = TreeCache(tmp_path)
    cache.note_tree(origin(1, 2), make_tree(1)[0])
    cache.note_problem(origin(1), "no tree")
    cache.note_tree(origin(1, 12), make_tree(2)[0])
    assert [cache.tree_of(origin(1, first)) for first in (2, 12, None)] == [make_tree(1)[0], make_tree(2)[0], None]
    assert [cache.problem_of(origin(1, first)) for first in (2, 12, None)] == ["", "", "no tree"]


def test_the_first_layers_are_no_image(tmp_path: Path) -> None:
    """An image would be said to share all of its files, with a part of itself. A part may be an image of its own."""
    cache = TreeCache(tmp_path)
    whole, part, base, unknown = (make_tree(number) for number in range(4))
    for digest, raw in (whole, part, base, unknown):
        cache.keep(digest, raw)
    cache.note_tree(origin(1), whole[0])
    cache.note_problem(origin(3), "no tree")
    assert len(cache.names()) == 4
    for first, made in ((1, base), (2, part)):
        cache.note_tree(origin(1, first), made[0])
    cache.note_tree(origin(2), base[0])
    assert set(cache.names()) == {whole[0], base[0], unknown[0]}
    assert {tree.digest for tree in cache.trees()} == set(cache.names())


def test_which_tree_an_image_has(tmp_path: Path) -> None:
    """Noted once; nonsense is no tree."""
    cache = TreeCache(tmp_path)
    cache.note_tree(origin(1), make_tree(1)[0])
    assert cache.tree_of(origin(1)) == make_tree(1)[0]
    assert cache.tree_of(origin(2)) is None
    (path,) = (tmp_path / "images").iterdir()
    path.write_text("no hex")
    assert cache.tree_of(origin(1)) is None


def test_notes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of links and images are halved once they are too many."""
    monkeypatch.setattr(treecache, "_MOST_NOTES", 20)
    cache = TreeCache(tmp_path)
    for number in range(100):
        cache.note_tree(origin(number), bytes(32))
        cache.link(f"app{number}", bytes(32), origin(number))
        assert cache.tree_of(origin(number)) == bytes(32)
    assert len(list((tmp_path / "images").iterdir())) <= 20
    assert len(list((tmp_path / "links").iterdir())) <= 20


def test_temporary_files_of_a_crash(tmp_path: Path) -> None:
    """They go after a while; one that is being written stays."""
    old, young = tmp_path / ".old", tmp_path / ".young"
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    TreeCache(tmp_path).keep(*make_tree(1))
    assert not old.exists()
    assert young.exists()


def test_a_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    """Nothing is kept, and nothing fails."""
    (tmp_path / "file").touch()
    cache = TreeCache(tmp_path / "file")
    digest, raw = make_tree(1)
    cache.keep(digest, raw)
    cache.link("app", digest, origin(1))
    cache.note_tree(origin(1), digest)
    assert (cache.load(digest), cache.tree_of(origin(1)), cache.origins("app", digest)) == (None, None, [])


_WORKER = """
import random, sys
from pathlib import Path
from pagepool.image.treefile import TreeFile
from pagepool_service.treecache import TreeCache
from tests.service.test_treecache import make_tree

chance = random.Random(int(sys.argv[2]))
trees = [make_tree(number, 2000) for number in range(12)]
cache = TreeCache(Path(sys.argv[1]), 4 * len(trees[0][1]))
held = []
for _ in range(300):
    digest, raw = chance.choice(trees)
    found = cache.load(digest)
    if found is None:
        cache.keep(digest, raw)
    else:
        held.append((raw, found))
assert held
assert all(bytes(found.raw) == raw for raw, found in held)
"""


def test_several_processes(tmp_path: Path) -> None:
    """Under a budget that makes them remove each other's files, each gets what it asks for, or nothing."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    paths = os.pathsep.join(str(_ROOT / name) for name in ("client", "service", "."))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(tmp_path), str(seed + number)], env={**os.environ, "PYTHONPATH": paths}
        )
        for number in range(3)
    ]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
