"""What images must hold, computed from layers: hand-made stacks of layers, with the files that are left of them."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from pagepool.digest import Digest
from pagepool.errors import DigestMismatchError, LayerInvalidError
from pagepool.load.layertruth import TruthBuilder
from pagepool.load.trace import TraceInvalidError, guess_trace, load_trace, plan_recorded
from pagepool.load.truth import PAGE, Truth, TruthInvalidError, page_digest
from pagepool.oci import Descriptor, mediatypes

Entry = tuple[str, bytes | str | None]
"""A path, and its content; None for a directory; text for a link: ``->target`` symbolic, ``=target`` hard."""

BIG = bytes(range(256)) * 40


def _layer(*entries: Entry) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, content in entries:
            member = tarfile.TarInfo(path)
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                member.type = tarfile.SYMTYPE if content.startswith("->") else tarfile.LNKTYPE
                member.linkname = content.lstrip("->=")
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def _build(*layers: bytes) -> tuple[Truth, int]:
    builder = TruthBuilder()
    for data in layers:
        blob = Descriptor(mediatypes.OCI_LAYER, Digest.of(data), len(data))
        builder.add_layer(blob, io.BytesIO(data), lambda _: None)
    return Truth(builder.encode()), builder.left_out


def _digests(truth: Truth) -> dict[str, bytes]:
    return {truth.path(file).decode(): truth.digest(file) for file in range(truth.count)}


def _expect(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: hashlib.sha256(content).digest() for path, content in files.items()}


CASES: list[tuple[str, list[list[Entry]], dict[str, bytes], int]] = [
    ("one layer", [[("a", b"1"), ("./d/e", BIG), ("empty", b"")]], {"a": b"1", "d/e": BIG, "empty": b""}, 0),
    ("replaced", [[("a", b"1"), ("b", b"2")], [("a", b"3")]], {"a": b"3", "b": b"2"}, 0),
    ("whiteout", [[("d/a", b"1"), ("d/b", b"2")], [("d/.wh.a", b"")]], {"d/b": b"2"}, 0),
    ("whiteout of a directory", [[("d/a", b"1"), ("e", b"2")], [(".wh.d", b"")]], {"e": b"2"}, 0),
    ("whiteout, and the same name", [[("d/a", b"1")], [("d/.wh.a", b""), ("d/a", b"2")]], {"d/a": b"2"}, 0),
    ("opaque", [[("d/a", b"1"), ("e", b"2")], [("d/b", b"3"), ("d/.wh..wh..opq", b"")]], {"d/b": b"3", "e": b"2"}, 0),
    ("a file in place of a directory", [[("d/a", b"1")], [("d", b"2")]], {"d": b"2"}, 0),
    ("a directory in place of a file", [[("d", b"1")], [("d", None), ("d/a", b"2")]], {"d/a": b"2"}, 0),
    ("a directory keeps what is in it", [[("d/a", b"1")], [("d", None), ("d/b", b"2")]], {"d/a": b"1", "d/b": b"2"}, 0),
    ("a hard link", [[("a", b"1"), ("b", "=a")]], {"a": b"1", "b": b"1"}, 0),
    ("a hard link to a lower layer", [[("a", b"1")], [("b", "=a")]], {"a": b"1", "b": b"1"}, 0),
    ("a symlink is no file", [[("a", b"1"), ("b", "->a")]], {"a": b"1"}, 0),
    ("twice in a layer", [[("a", b"1"), ("a", b"2")]], {"a": b"2"}, 0),
    ("below a symlink", [[("usr/lib/a", b"1"), ("lib", "->usr/lib")], [("lib/a", b"2")]], {}, 1),
    ("a name that goes up", [[("a/../b", b"1"), ("c", b"2")]], {"c": b"2"}, 1),
]


@pytest.mark.parametrize(("layers", "files", "left_out"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_layers_are_merged(layers: list[list[Entry]], files: dict[str, bytes], left_out: int) -> None:
    truth, found = _build(*(_layer(*entries) for entries in layers))
    assert _digests(truth) == _expect(files)
    assert found == left_out


def test_pages_and_files_are_found() -> None:
    files = {f"d/{number}": bytes([number]) * (number * 1500) for number in range(20)}
    truth, _ = _build(gzip.compress(_layer(*files.items())))
    seen = 0
    for file in range(truth.count):
        content = files[truth.path(file).decode()]
        assert truth.find(truth.path(file)) == file
        assert truth.size(file) == len(content)
        for page in range(-(-len(content) // PAGE)):
            assert truth.locate(seen) == (file, page * PAGE)
            assert truth.expected(file, page) == page_digest(content[page * PAGE : (page + 1) * PAGE])
            seen += 1
    assert seen == truth.pages
    assert truth.find(b"d/nothing") == truth.find(b"") == truth.find(b"zzz") == -1


def test_a_layer_with_other_bytes_is_refused() -> None:
    data = _layer(("a", BIG))
    blob = Descriptor(mediatypes.OCI_LAYER, Digest.of(data), len(data))
    damaged = bytearray(data)
    damaged[600] ^= 1
    with pytest.raises(DigestMismatchError):
        TruthBuilder().add_layer(blob, io.BytesIO(bytes(damaged)), lambda _: None)
    garbage = b"no tar" * 1000
    with pytest.raises(LayerInvalidError):
        TruthBuilder().add_layer(
            Descriptor(mediatypes.OCI_LAYER, Digest.of(garbage), len(garbage)), io.BytesIO(garbage), lambda _: None
        )


@pytest.mark.parametrize("data", [b"", b"x" * 40, b"PPTRUTH1" + bytes(23)], ids=["empty", "another", "cut"])
def test_what_is_no_truth_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "truth"
    path.write_bytes(data)
    with pytest.raises(TruthInvalidError):
        Truth.open(path)


def test_a_recorded_trace(tmp_path: Path) -> None:
    truth, _ = _build(_layer(("bin/a", b"x" * 100), ("b", b"y" * 10)))
    path = tmp_path / "trace"
    path.write_text(
        '{"path": "/bin/a"}\n\n{"path": "b", "offset": 4, "size": 100}\n'
        '{"path": "/not/there"}\n{"path": "/bin/a", "fraction": 0.25}\n{"path": "b", "offset": 50}\n'
    )
    steps = plan_recorded(load_trace(path), truth)
    assert [(truth.path(file), offset, size) for file, offset, size in steps] == [
        (b"bin/a", 0, 100),
        (b"b", 4, 6),
        (b"bin/a", 0, 25),
        (b"b", 10, 0),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "trace:2"),
        ("[]", 'no object with a "path"'),
        ('{"offset": 1}', "'path'"),
        ('{"path": 3}', 'no object with a "path"'),
        ('{"path": "a", "offset": -1}', "offset -1"),
        ('{"path": "a", "size": 1.5}', "size 1.5"),
        ('{"path": "a", "fraction": 2}', "fraction 2"),
    ],
)
def test_a_bad_trace_is_refused_by_its_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "trace"
    path.write_text(f'{{"path": "a"}}\n{line}\n')
    with pytest.raises(TraceInvalidError, match=reason):
        load_trace(path)
    path.write_text("\n")
    with pytest.raises(TraceInvalidError, match="has no line"):
        load_trace(path)


def test_a_guess_is_the_same_each_time_and_begins_with_programs() -> None:
    names = [f"usr/bin/p{number}" for number in range(100)] + [f"usr/share/d{number}" for number in range(400)]
    truth, _ = _build(_layer(*((name, b"x" * 5000) for name in names)))
    guess = guess_trace(truth, 5)
    assert guess == guess_trace(truth, 5) != guess_trace(truth, 6)
    kinds = [truth.path(step.file).startswith(b"usr/bin") for step in guess]
    assert kinds == sorted(kinds, reverse=True)
    assert 50 <= sum(kinds) < len(guess)
    assert len(set(guess)) == len(guess)
