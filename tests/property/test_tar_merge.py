"""Random stacks of layers: the tree is what `umoci unpack` writes to disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pagepool.errors import LayerInvalidError
from tests.image.stacks import directory, file, hardlink, layer, opaque, symlink, whiteout
from tests.image.umoci import check_same, needs_umoci, read_tree, unpack

pytestmark = needs_umoci

# Few names, so that members meet.
NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
TARGETS = st.one_of(PATHS, PATHS.map(lambda path: b"/" + path), st.sampled_from([b".", b"..", b"../..", b"../b"]))
MEMBERS = st.one_of(
    st.builds(directory, PATHS, st.sampled_from([0o755, 0o700])),
    st.builds(file, PATHS, st.binary(min_size=1, max_size=3)),
    st.builds(symlink, PATHS, TARGETS),
    st.builds(hardlink, PATHS, PATHS),
    st.builds(whiteout, PATHS),
    st.builds(opaque, st.one_of(PATHS, st.just(b""))),
)
STACKS = st.lists(st.lists(MEMBERS, max_size=8).map(lambda members: layer(*members)), min_size=1, max_size=3)


@given(STACKS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_merge_is_what_umoci_writes(layers: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        try:
            read_tree(layers)
        except LayerInvalidError:
            event("refused")
            assert unpack(path, layers).returncode != 0
            return
        # umoci 0.4 refuses a parent that is no directory, later ones replace it, as we do.
        if unpack(path / "probe", layers).returncode == 0:
            event("compared")
            check_same(path / "again", layers)
