"""OCI layouts in directories: read, made, added to; and copying into them when things go wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from pagepool.digest import Digest
from pagepool.errors import (
    BlobUnknownError,
    DigestMismatchError,
    ImageInvalidError,
    InvalidError,
    LimitError,
    ManifestUnknownError,
    PagepoolError,
)
from pagepool.layout import Format, Location, choose_format, open_sink, open_source, parse_location, plan_copy, run_copy
from pagepool.layout.sink import plan_entries
from pagepool.oci import (
    Descriptor,
    Index,
    Platform,
    Readable,
    VerifyingReader,
    encode_manifest,
    mediatypes,
    parse_manifest,
)
from tests.faults import cut_power, small_file_system
from tests.oci.samples import Sample, contents, multi_platform, simple, tar


def _write(sample: Sample, path: Path, name: str = "1", jobs: int = 2) -> None:
    sink = open_sink(path, "oci", name)
    try:
        run_copy(plan_copy(sample), sample, sink, jobs=jobs)
    finally:
        sink.close()


def _read(path: Path, name: str | None = None) -> tuple[Descriptor, dict[Digest, bytes]]:
    """The root and everything below it."""
    source = open_source(path, name)
    plan = plan_copy(source)
    found = {entry.digest: document.raw for entry, document in plan.manifests}
    for blob in plan.blobs:
        with VerifyingReader(source.open_blob(blob), blob) as reader:
            found[blob.digest] = reader.read()
    source.close()
    return plan.root[0], found


def test_new_layout_holds_the_image(tmp_path: Path) -> None:
    sample = simple()
    _write(sample, tmp_path / "out")
    root, found = _read(tmp_path / "out")
    assert root.digest == sample.root().digest
    assert found == sample.content
    assert _names(tmp_path) == ["out"]
    assert json.loads((tmp_path / "out/oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    mode = (tmp_path / "out").stat().st_mode & 0o777
    assert mode == 0o777 & ~_umask()


def test_a_layout_that_was_written_is_on_the_disk(tmp_path: Path) -> None:
    """All of it, also the file that says what it is, when the power is lost right after."""
    first, second = simple(2), simple(3)
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    with small_file_system(before, 64 << 20) as mounted:
        _write(first, mounted / "out", "first")
        _write(second, mounted / "out", "second")
        cut_power(mounted)
    with small_file_system(after, 64 << 20, image=before / "small.img") as mounted:
        for sample, name in ((first, "first"), (second, "second")):
            root, found = _read(mounted / "out", name)
            assert (root.digest, found) == (sample.root().digest, sample.content)


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_index_is_copied_with_everything_below(tmp_path: Path) -> None:
    sample, _ = multi_platform()
    _write(sample, tmp_path / "out")
    assert _read(tmp_path / "out")[1] == sample.content


def test_platform_is_picked_through_indexes() -> None:
    sample, arm = multi_platform()
    plan = plan_copy(sample, Platform.parse("linux/arm64"))
    assert plan.root[0].digest == arm.digest
    assert len(plan.manifests) == 1
    with pytest.raises(ManifestUnknownError, match="s390x"):
        plan_copy(sample, Platform.parse("linux/s390x"))


def test_second_image_is_added_and_the_first_stays(tmp_path: Path) -> None:
    first, second = simple(2), simple(3)
    _write(first, tmp_path / "out", "first")
    inodes = {path.name: path.stat().st_ino for path in (tmp_path / "out/blobs/sha256").iterdir()}
    second.opened.clear()
    _write(second, tmp_path / "out", "second")
    assert _read(tmp_path / "out", "first")[0].digest == first.root().digest
    assert _read(tmp_path / "out", "second")[0].digest == second.root().digest
    shared = first.content.keys() & second.content.keys()
    assert shared
    assert not shared & set(second.opened)  # what is there is not fetched again
    now = {path.name: path.stat().st_ino for path in (tmp_path / "out/blobs/sha256").iterdir()}
    assert all(now[digest.hex] == inodes[digest.hex] for digest in shared)


def test_name_moves_to_the_new_image(tmp_path: Path) -> None:
    for sample in (simple(1), simple(2), simple(2)):
        _write(sample, tmp_path / "out", "1")
    index = json.loads((tmp_path / "out/index.json").read_bytes())
    assert len(index["manifests"]) == 1
    assert _read(tmp_path / "out")[0].digest == simple(2).root().digest


def test_unknown_fields_of_an_index_stay(tmp_path: Path) -> None:
    sample = simple()
    sample.write_layout(tmp_path / "out", {"other": sample.root()})
    index = tmp_path / "out/index.json"
    document = json.loads(index.read_bytes()) | {"annotations": {"a": "b"}, "x-later": [1]}
    document["manifests"][0]["x-more"] = True
    index.write_text(json.dumps(document))
    _write(simple(3), tmp_path / "out", "new")
    after = json.loads(index.read_bytes())
    assert after["x-later"] == [1]
    assert after["manifests"][0]["x-more"] is True
    assert len(after["manifests"]) == 2


def test_entries_of_an_index() -> None:
    one, two = Descriptor.of("a/b", b"1"), Descriptor.of("a/b", b"2")
    named = plan_entries([], one, "n")
    assert plan_entries(named, one, "n") == named
    assert len(plan_entries(named, one, "m")) == 2
    assert [entry["digest"] for entry in plan_entries(named, two, "n")] == [str(two.digest)]
    assert plan_entries(named, one, "") == named
    nameless = plan_entries([], one, "")
    assert plan_entries(nameless, one, "n") == named
    assert len(plan_entries(nameless, two, "")) == 2


@pytest.mark.parametrize("existing", ["missing", "empty"])
def test_failure_leaves_nothing(tmp_path: Path, existing: str) -> None:
    out = tmp_path / "out"
    if existing == "empty":
        out.mkdir()
    sample = simple(3)
    broken = next(blob for blob in plan_copy(sample).blobs if blob.media_type != mediatypes.OCI_CONFIG)
    sample.content[broken.digest] = b"?" * broken.size
    with pytest.raises(DigestMismatchError, match=str(broken.digest)):
        _write(sample, out)
    assert _names(tmp_path) == (["out"] if existing == "empty" else [])
    assert existing == "missing" or not _names(out)


def test_failure_leaves_an_existing_layout_as_it_was(tmp_path: Path) -> None:
    _write(simple(1), tmp_path / "out")
    index = (tmp_path / "out/index.json").read_bytes()
    sample = simple(3)
    layer = plan_copy(sample).blobs[-1]
    del sample.content[layer.digest]
    with pytest.raises(BlobUnknownError, match=str(layer.digest)):
        _write(sample, tmp_path / "out", "2")
    assert (tmp_path / "out/index.json").read_bytes() == index
    assert not [name for name in contents(tmp_path / "out") if ".tmp" in name]
    for name, data in contents(tmp_path / "out/blobs").items():
        assert Digest.of(data).hex == Path(name).name  # whatever was added is whole


def test_two_writers_of_one_layout(tmp_path: Path) -> None:
    _write(simple(1), tmp_path / "out", "base")
    threads = [
        threading.Thread(target=_write, args=(simple(2), tmp_path / "out", f"image{number}")) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index = parse_manifest((tmp_path / "out/index.json").read_bytes())
    assert isinstance(index, Index)
    assert {entry.ref_name for entry in index.manifests} == {"base", *(f"image{number}" for number in range(8))}


def test_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    (tmp_path / "plain").write_text("x")
    with pytest.raises(ImageInvalidError, match="oci-layout is missing"):
        open_sink(tmp_path / "full", "oci", "")
    with pytest.raises(ImageInvalidError, match="not an OCI layout"):
        open_sink(tmp_path / "plain", "oci", "")
    with pytest.raises(ImageInvalidError, match="no directory"):
        open_sink(tmp_path / "a/b", "oci", "")
    forms: tuple[Format, ...] = ("oci-archive", "docker-archive")
    for form in forms:
        with pytest.raises(ImageInvalidError, match="is a directory"):
            open_sink(tmp_path / "full", form, "")
    assert _names(tmp_path) == ["full", "plain"]


def test_choice_among_several_images(tmp_path: Path) -> None:
    one, two = simple(1), simple(2)
    both = Sample(one.content | two.content)
    both.write_layout(tmp_path, {"one": one.root(), "registry.example.org/team/app:two": two.root()})
    assert _read(tmp_path, "one")[0].digest == one.root().digest
    for name in ("two", "registry.example.org/team/app:two", str(two.root().digest), f"@{two.root().digest}"):
        assert _read(tmp_path, name)[0].digest == two.root().digest
    with pytest.raises(ImageInvalidError, match=r"has 2 images.*one, registry"):
        open_source(tmp_path, None)
    with pytest.raises(ImageInvalidError, match="no image 'three'; it has one"):
        open_source(tmp_path, "three")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("oci-layout", None, "without an OCI layout"),
        ("oci-layout", b"{}", "imageLayoutVersion"),
        ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}', "not supported"),
        ("oci-layout", b"\xff", "UTF-8"),
        ("index.json", None, "index.json is missing"),
        ("index.json", b"[]", "not an object"),
        ("index.json", b'{"schemaVersion":2,"manifests":[]}', "has no image"),
        ("index.json", b'{"schemaVersion":2,"manifests":[{}]}', "mediaType"),
        ("index.json", b" " * (17 << 20), "limit"),
    ],
)
def test_damaged_layouts(tmp_path: Path, file: str, content: bytes | None, words: str) -> None:
    sample = simple()
    sample.write_layout(tmp_path, {"": sample.root()})
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(PagepoolError, match=words):
        open_source(tmp_path, None)


@pytest.mark.parametrize("damage", ["missing", "flipped", "short", "long", "directory", "fifo"])
@pytest.mark.parametrize("which", ["manifest", "layer"])
def test_damaged_blobs_are_named(tmp_path: Path, damage: str, which: str) -> None:
    sample = simple()
    sample.write_layout(tmp_path, {"": sample.root()})
    victim = sample.root() if which == "manifest" else plan_copy(sample).blobs[-1]
    path = tmp_path / "blobs/sha256" / victim.digest.hex
    data = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage == "fifo":
        os.mkfifo(path)
    elif damage != "missing":
        path.write_bytes({"flipped": b"?" + data[1:], "short": data[:-1], "long": data + b"?"}[damage])
    with pytest.raises((ImageInvalidError, DigestMismatchError), match=victim.digest.hex):
        _read(tmp_path)


def test_blobs_that_are_links_are_read(tmp_path: Path) -> None:
    sample = simple()
    sample.write_layout(tmp_path / "real", {"": sample.root()})
    sample.write_layout(tmp_path / "links", {"": sample.root()})
    for path in (tmp_path / "links/blobs/sha256").iterdir():
        path.unlink()
        path.symlink_to(tmp_path / "real/blobs/sha256" / path.name)
    assert _read(tmp_path / "links")[1] == sample.content


def test_layers_that_may_not_be_distributed_may_be_missing(tmp_path: Path) -> None:
    sample = Sample()
    config = sample.add(mediatypes.OCI_CONFIG, b"{}")
    foreign = Descriptor.of(mediatypes.OCI_FOREIGN_LAYER, b"elsewhere")
    plain = sample.add(mediatypes.OCI_LAYER, tar({}))
    manifest = encode_manifest(config, [foreign, plain])
    sample.top = sample.add(manifest.media_type, manifest.raw)
    _write(sample, tmp_path / "out")
    assert not (tmp_path / "out/blobs/sha256" / foreign.digest.hex).exists()
    assert (tmp_path / "out/blobs/sha256" / plain.digest.hex).exists()


def test_indexes_within_indexes_have_a_limit() -> None:
    sample = simple(1)
    for _ in range(20):
        sample.add_index([sample.root()])
    top = sample.root().digest
    with pytest.raises(LimitError, match="depth"):
        plan_copy(sample)
    with pytest.raises(LimitError, match=f"depth of indexes within {top}"):
        plan_copy(sample, Platform.local())


def test_one_digest_with_two_sizes_is_refused() -> None:
    sample = simple(1)
    layer = plan_copy(sample).blobs[-1]
    wrong = Descriptor(layer.media_type, layer.digest, layer.size + 1)
    manifest = encode_manifest(plan_copy(sample).blobs[0], [layer])
    other = encode_manifest(plan_copy(sample).blobs[0], [wrong])
    entries = [sample.add(document.media_type, document.raw) for document in (manifest, other)]
    sample.add_index(entries)
    with pytest.raises(ImageInvalidError, match=str(layer.digest)):
        plan_copy(sample)


def test_watcher_sees_every_byte_once(tmp_path: Path) -> None:
    sample = simple(3)
    seen: dict[Digest, int] = {}
    ends: list[tuple[Digest, bool]] = []

    class Watcher:
        def begin(self, blobs: Sequence[Descriptor]) -> None:
            assert len(blobs) == 4

        def progress(self, blob: Descriptor, count: int) -> None:
            seen[blob.digest] = seen.get(blob.digest, 0) + count

        def finish(self, blob: Descriptor, copied: bool) -> None:
            ends.append((blob.digest, copied))

    sink = open_sink(tmp_path / "out", "oci", "")
    run_copy(plan_copy(sample), sample, sink, jobs=3, watcher=Watcher())
    sink.close()
    assert seen == {blob.digest: blob.size for blob in plan_copy(sample).blobs}
    assert all(copied for _, copied in ends)


class _Interrupted(BaseException):
    pass


def test_a_signal_that_wakes_nobody_ends_a_copy(tmp_path: Path) -> None:
    """As one that comes just before the wait for the threads begins: here a thread that moves a blob gets it."""
    left, told = threading.Event(), []

    class Source(Sample):
        def open_blob(self, blob: Descriptor) -> Readable:
            if not self.opened:
                signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
            found = super().open_blob(blob)
            told.append(left.wait(60))
            return found

    def interrupt(_number: int, _frame: object) -> None:
        raise _Interrupted

    sample = simple(1)
    source = Source(**{field.name: getattr(sample, field.name) for field in fields(sample)})
    sink = open_sink(tmp_path / "out", "oci", "")
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(_Interrupted):
            run_copy(plan_copy(source), source, sink, jobs=1)
        left.set()
    finally:
        signal.signal(signal.SIGUSR1, before)
        sink.close()
    assert told in ([], [True])


@pytest.mark.parametrize(
    ("text", "existing", "path", "name", "form"),
    [
        ("out", [], "out", None, None),
        ("out:1", [], "out", "1", None),
        ("out:", [], "out", None, None),
        ("out:example.org/a:1", [], "out", "example.org/a:1", None),
        ("a:b", ["a:b"], "a:b", None, None),
        ("a:b:c", ["a:b"], "a:b", "c", None),
        ("a:b:c", ["a", "a:b"], "a:b", "c", None),
        ("a:b:c", ["a"], "a", "b:c", None),
        ("-", [], "-", None, None),
        (":x", [], ":x", None, None),
        ("oci", [], "oci", None, None),
        ("oci:out", [], "out", None, "oci"),
        ("oci:out:1", [], "out", "1", "oci"),
        ("oci:a:b:c", ["a:b"], "a:b", "c", "oci"),
        ("oci:out", ["oci"], "oci", "out", None),
        ("oci:out", ["oci:out"], "oci:out", None, None),
        ("oci-archive:./a.tar", [], "a.tar", None, "oci-archive"),
        ("docker-archive:a.tar:example.org/a:1", [], "a.tar", "example.org/a:1", "docker-archive"),
        ("docker-archive:-", [], "-", None, "docker-archive"),
        ("dir:x", ["dir"], "dir", "x", None),
        ("./dir:x", [], "dir", "x", None),
    ],
)
def test_path_and_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    existing: list[str],
    path: str,
    name: str | None,
    form: Format | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    for entry in existing:
        Path(entry).mkdir()
    assert parse_location(text) == Location(Path(path), name, form)


@pytest.mark.parametrize("text", ["dir:x", "docker-daemon:app:1", "docker://example.org/a", "oci:", "oci-archive:"])
def test_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Another program's kind of place, and a format without a path, are said to be that, and make no file."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidError, match=re.escape(text)):
        parse_location(text)


def test_format_by_path(tmp_path: Path) -> None:
    (tmp_path / "dir.tar").mkdir()
    assert choose_format(tmp_path / "x.tar") == "oci-archive"
    assert choose_format(tmp_path / "dir.tar") == "oci"
    assert choose_format(tmp_path / "x") == "oci"


class Slow:
    """A blob of which a byte comes now and then: longer than the test lasts, unless nobody reads any more."""

    def read(self, _size: int = -1, /) -> bytes:
        threading.Event().wait(0.01)
        return bytes(1)

    def close(self) -> None:
        """Nothing to do."""


def test_ctrl_c_between_two_starts_stops_what_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thread moves a blob already when the interrupt comes; it must not go on, nor leave anything."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    sample = simple(1)
    monkeypatch.setattr(sample, "open_blob", lambda _: Slow())
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _write(sample, tmp_path / "out")
    assert [thread.is_alive() for thread in started] == [False]
    assert list(tmp_path.iterdir()) == []
