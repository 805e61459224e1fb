"""Random operations on an overlay: the layer of its diff, applied to the image, is what the overlay shows."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings

from pagepool.image import Kind
from pagepool.overlay import OverlayFileSystem, iter_layer, plan_diff, plan_overlay
from tests.image.umoci import check_same, needs_umoci, read_tree
from tests.overlay.layers import rows, whole_layer
from tests.overlay.operations import operations, run
from tests.support.trees import TreeBuilder

if TYPE_CHECKING:
    from pagepool.vfs import TreeFileSystem
    from tests.overlay.operations import Operation

_TREE = b"t" * 32


def _image() -> TreeFileSystem:
    """Directories, files of one to three blocks, links across directories, one of each other kind."""
    builder = TreeBuilder()
    builder.directory("a/a", 0o700, mtime_ns=5)
    builder.file("a/a/b", b"block" * 1000, mtime_ns=-1)
    linked = builder.file("a/b", b"linked" * 2000, xattrs={b"user.0": b"0"})
    for path in ("b/a", "b/c/a"):
        builder.add(path, linked)
    builder.file("b/c/b", b"")
    builder.file("c/a/b/c/deep", b"deep")
    builder.symlink("c/b", "../a")
    builder.device("c/c", Kind.CHAR, (1, 3))
    builder.device("c/fifo", Kind.FIFO, (0, 0))
    return builder.file_system()


def _check(image: TreeFileSystem, overlay: OverlayFileSystem) -> list[bytes]:
    """The layer, planned with and without what the overlay knows, makes the same of the image."""
    below = whole_layer(image)
    changes = plan_overlay(overlay)
    layer = b"".join(iter_layer(overlay, changes))
    assert read_tree([below, layer]) == rows(overlay)
    compared = plan_diff(overlay, image)
    assert {change.path for change in compared} <= {change.path for change in changes}
    assert read_tree([below, b"".join(iter_layer(overlay, compared))]) == rows(overlay)
    return [below, layer]


@given(operations(12))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_diff_of_an_overlay_makes_what_it_shows(wanted: list[Operation]) -> None:
    image = _image()
    with tempfile.TemporaryDirectory() as directory:
        with closing(OverlayFileSystem.open(Path(directory), image, tree=_TREE)) as overlay:
            assert plan_overlay(overlay) == []
            run(overlay, wanted)
            _, layer = _check(image, overlay)
        with closing(OverlayFileSystem.open(Path(directory), image, tree=_TREE)) as again:
            assert b"".join(iter_layer(again, plan_overlay(again))) == layer


@needs_umoci[0]
@needs_umoci[1]
@given(operations(12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_umoci_makes_what_an_overlay_shows(wanted: list[Operation]) -> None:
    image = _image()
    with (
        tempfile.TemporaryDirectory() as directory,
        closing(OverlayFileSystem.open(Path(directory, "upper"), image, tree=_TREE)) as overlay,
    ):
        run(overlay, wanted)
        check_same(Path(directory), _check(image, overlay))
