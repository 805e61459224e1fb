"""Tree files as they are sent: what is kept is what was asked for, and no more of it than is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard
from blake3 import blake3

from pagepool.image import TreeFile
from pagepool_service.codedtrees import CodedTrees
from tests.service.test_treefiles import tree_of

if TYPE_CHECKING:
    import httpx


def trees_of(http: httpx.Client) -> list[TreeFile]:
    """Three trees of some kilobytes."""
    found = []
    for number in range(3):
        files = {f"{number}/{index}": f"{number} {index}".encode() * 99 for index in range(64)}
        said = tree_of(http, f"coded/app{number}", files)
        raw = http.get(f"/v1/coded/app{number}/trees/{said['tree']}", headers={"Accept-Encoding": "identity"}).content
        found.append(TreeFile(raw, blake3(raw).digest()))
    return found


def test_each_is_itself_however_few_are_kept(http: httpx.Client) -> None:
    """Also one that was let go of, and one that is larger than all that may be kept."""
    trees = trees_of(http)
    for most in (0, len(CodedTrees().compress(trees[0])) + 1, 16 << 20):
        coded = CodedTrees(most)
        for tree in (*trees, *reversed(trees), *trees):
            sent = coded.compress(tree)
            assert zstandard.ZstdDecompressor().decompress(sent) == tree.raw
            assert len(sent) < len(tree.raw)
            assert coded.compress(tree) is sent  # the last one always is kept


def test_what_is_not_asked_for_again_goes_first(http: httpx.Client) -> None:
    """Of three there is room for two."""
    first, second, third = trees_of(http)
    sizes = [len(CodedTrees().compress(tree)) for tree in (first, second, third)]
    coded = CodedTrees(sum(sizes) - 1)
    kept, gone = coded.compress(first), coded.compress(second)
    assert coded.compress(first) is kept
    coded.compress(third)
    assert coded.compress(first) is kept
    assert coded.compress(second) is not gone


def test_a_client_gets_them(http: httpx.Client) -> None:
    """Twice the same, and what it is without."""
    (tree, *_) = trees_of(http)
    url = f"/v1/coded/app0/trees/blake3:{tree.digest.hex()}"
    for _ in range(2):
        with http.stream("GET", url, headers={"Accept-Encoding": "zstd"}) as answer:
            sent = b"".join(answer.iter_raw())
        assert (answer.status_code, answer.headers["content-encoding"]) == (200, "zstd")
        assert zstandard.ZstdDecompressor().decompress(sent) == tree.raw
