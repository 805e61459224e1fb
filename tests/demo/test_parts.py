"""The parts of the demo, each by itself: what is chosen, how it is packed, what a comparison finds."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from pagepool.errors import StoreFullError, UnsupportedError
from pagepool.layout import Plan, open_source, plan_copy
from pagepool.layout.source import blob_name
from pagepool.samples import Material, images, material
from pagepool.samples.layers import Packing, pack
from pagepool.samples.material import Member
from pagepool_service.commands import demo as command
from pagepool_service.demo import words
from pagepool_service.demo.progress import Narrator, Step, describe
from pagepool_service.demo.verify import compare


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with a bit of everything."""
    root = tmp_path / "files"
    (root / "sub").mkdir(parents=True)
    for number in range(400):
        (root / "sub" / f"file{number:03}").write_bytes(b"%d " % number * (number % 50))
    (root / "large").write_bytes(os.urandom(300_000))
    (root / "link").symlink_to("sub/file001")
    (root / "secret").write_text("not for everyone")
    (root / "secret").chmod(0o600)
    os.mkfifo(root / "fifo")
    root.chmod(0o755)
    return root


def _members(root: Path) -> tuple[Member, ...]:
    return tuple(material._take(((root, "usr/share"),), 10**9, set()))


def test_only_public_files_are_taken(files: Path) -> None:
    names = {member.name for member in _members(files)}
    assert {"usr/share", "usr/share/sub/file007", "usr/share/large", "usr/share/link"} <= names
    assert not names & {"usr/share/secret", "usr/share/fifo"}


def test_the_budget_is_kept_and_nothing_is_taken_twice(files: Path) -> None:
    taken: set[Path] = set()
    first = material._take(((files, "a"),), 200_000, taken)
    second = material._take(((files, "a"),), 10**9, taken)
    assert not {member.path for member in first} & {member.path for member in second}
    assert {member.path for member in first + second} == {member.path for member in _members(files)}


def test_a_machine_without_files_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_runtime_roots", "_system_roots", "_data_roots"):
        monkeypatch.setattr(material, name, lambda: ((tmp_path / "nothing", "usr"),))
    with pytest.raises(UnsupportedError, match="name images instead"):
        material.collect(10**6)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compress", [True, False])
def test_a_layer_is_what_tarfile_reads(files: Path, tmp_path: Path, compress: bool, form: int) -> None:
    members = _members(files)
    packed = pack(members, tmp_path, Packing(compress=compress, form=form), lambda _: None)  # type: ignore[arg-type]
    blob = (tmp_path / packed.descriptor.digest.hex).read_bytes()
    assert (len(blob), hashlib.sha256(blob).hexdigest()) == (packed.descriptor.size, packed.descriptor.digest.hex)
    plain = gzip.decompress(blob) if compress else blob
    assert (len(plain), hashlib.sha256(plain).hexdigest()) == (packed.plain_size, packed.diff_id.hex)
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        assert archive.getnames() == [member.name for member in members]
        for member in members:
            if member.is_file:
                content = archive.extractfile(member.name)
                assert content is not None
                assert content.read() == member.path.read_bytes()


def test_a_file_that_vanishes_is_left_out(files: Path, tmp_path: Path) -> None:
    members = _members(files)
    (files / "large").unlink()
    packed = pack(members, tmp_path, Packing(compress=False), lambda _: None)
    with tarfile.open(tmp_path / packed.descriptor.digest.hex) as archive:
        assert "usr/share/large" not in archive.getnames()


def _make(files: Path, layout: Path) -> tuple[images.Made, images.Made]:
    members = _members(files)
    return images.make_images(Material(members[:200], members[200:240], members[240:]), layout, lambda _: None)


def test_the_second_image_is_a_refreshed_first(files: Path, tmp_path: Path) -> None:
    first, second = _make(files, tmp_path / "layout")
    pairs = list(zip(first.layers, second.layers, strict=True))
    assert [one.descriptor.digest == other.descriptor.digest for one, other in pairs] == [False, True, False]
    assert 0 < second.changed < second.files // 5
    assert second.files < first.files, "a few are gone"
    again = _make(files, tmp_path / "again")
    assert [image.layers for image in again] == [first.layers, second.layers]


@pytest.fixture
def pulled(files: Path, tmp_path: Path) -> tuple[Plan, Path]:
    """The plan of an image, and a layout with it that stands for what was pulled."""
    _make(files, tmp_path / "layout")
    return plan_copy(open_source(tmp_path / "layout", "1")), tmp_path / "layout"


def test_what_is_equal_compares_equal(pulled: tuple[Plan, Path]) -> None:
    plan, layout = pulled
    hashed: list[int] = []
    checks = compare(plan, layout, (), hashed.append)
    assert [check.kind for check in checks] == ["manifest", *["config"], *["layer"] * 3, *["diff_id"] * 3]
    assert all(check.equal for check in checks)
    assert sum(hashed) > sum(blob.size for blob in plan.blobs)


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        *(("manifest", damage) for damage in ("flip", "cut", "remove")),
        *(("config", damage) for damage in ("flip", "remove")),  # one that is no JSON is an error of its own
        *(("layer", damage) for damage in ("flip", "cut", "remove")),
    ],
)
def test_every_difference_is_found(pulled: tuple[Plan, Path], kind: str, damage: str) -> None:
    plan, layout = pulled
    victim = {"manifest": plan.root[0], "config": plan.blobs[0], "layer": plan.blobs[1]}[kind]
    path = layout / blob_name(victim.digest)
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        # Inside of a string, so that a config stays one; anywhere in a layer.
        at = content.index(b"pagepool") if kind == "config" else len(content) // 2
        content[at] ^= 1
        path.write_bytes(content)
    bad = [check for check in compare(plan, layout, (), lambda _: None) if not check.equal]
    assert bad
    assert {check.name for check in bad} == {str(victim.digest)}
    assert kind in {check.kind for check in bad}


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Path
) -> None:
    monkeypatch.setattr(command, "collect", lambda _: Material(_members(files), (), ()))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(StoreFullError, match=r"needs [0-9.]+ MB in .* which has 1\.0 kB; see --size and \$TMPDIR"):
        command._make(tmp_path / "work", 10**6, Narrator(speak=False, live=False))
    assert not (tmp_path / "work").exists()


def test_a_step_is_told_with_its_rate() -> None:
    line = describe(Step("push", 2.0, 10_000_000, "as pushed"))
    assert line.split() == ["push", "2.00", "s", "10.0", "MB", "as", "pushed,", "5.0", "MB/s"]
    assert describe(Step("start", 1.0)).split() == ["start", "1.00", "s"]


def test_the_next_steps_can_be_typed_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who runs README's first command has no `pagepool` in PATH, only one in the environment that it made."""
    monkeypatch.setattr(sys, "argv", [".venv/bin/pagepool", "demo"])
    monkeypatch.setenv("PATH", str(tmp_path))
    for kept in (None, tmp_path):
        ours = [line for line in words.next_steps(kept).splitlines() if "pagepool " in line]
        assert len(ours) == 4
        assert all(line.startswith("  .venv/bin/pagepool ") for line in ours)
    (tmp_path / "pagepool").touch(mode=0o755)
    assert "\n  pagepool serve " in words.next_steps(None)
