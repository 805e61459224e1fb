"""The model of an overlay beside plain files that do not know of it: right bytes agree, wrong ones do not."""

from __future__ import annotations

from random import Random

import pytest

from pagepool.digest import Digest
from pagepool.load.truth import PAGE, TrueFile, Truth, encode_truth, page_digest
from pagepool.load.writing import OverlayModel, Wrong

BASE = {
    b"small": b"s" * 10,
    b"empty": b"",
    b"page": b"p" * PAGE,
    b"odd": Random(1).randbytes(3 * PAGE + 77),
    b"large": Random(2).randbytes(20 * PAGE),
}


class PlainFiles:
    """Files in memory, as a `Writable`."""

    manifest = Digest.of(b"")

    def __init__(self) -> None:
        self.files = {path: bytearray(content) for path, content in BASE.items()}

    def read(self, path: bytes, offset: int, size: int) -> bytes:
        return bytes(self.files[path][offset : offset + size])

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        file = self.files.setdefault(path, bytearray())
        file.extend(bytes(max(0, offset - len(file))))
        file[offset : offset + len(data)] = data

    def truncate(self, path: bytes, size: int) -> None:
        del self.files[path][size:]

    def sync(self, path: bytes) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def truth() -> Truth:
    def true(path: bytes, content: bytes) -> TrueFile:
        pages = b"".join(page_digest(content[at : at + PAGE]) for at in range(0, len(content), PAGE))
        return TrueFile(path, len(content), bytes(32), pages)

    return Truth(encode_truth(true(path, content) for path, content in BASE.items()))


def _step(model: OverlayModel, files: PlainFiles, random: Random) -> list[Wrong]:
    """One change, as a client does it; what it found wrong."""
    wrong: list[Wrong | None] = []
    if random.random() < 0.2 and (cut := model.plan_cut()) is not None:
        path, size = cut
        wrong += [model.learn(path, at, files.read(path, at, PAGE)) for at in model.need_cut(path, size)]
        files.truncate(path, size)
        model.cut(path, size)
        wrong += model.check(path, max(0, size - 1), 1, files)
    else:
        path, offset, data = model.plan_write()
        wrong += [model.learn(path, at, files.read(path, at, PAGE)) for at in model.need(path, offset, len(data))]
        files.write(path, offset, data)
        model.wrote(path, offset, data)
        wrong += model.check(path, offset, len(data), files)
    return [one for one in wrong if one is not None]


@pytest.mark.parametrize("seed", range(20))
def test_right_bytes_are_right(truth: Truth, seed: int) -> None:
    random, files = Random(seed), PlainFiles()
    model = OverlayModel(truth, random)
    counted: list[int] = []
    for _ in range(100):
        assert _step(model, files, random) == []
    assert list(model.check_all(files, counted.append)) == []
    assert sum(counted) > 20


@pytest.mark.parametrize("seed", range(20))
def test_one_wrong_bit_is_found(truth: Truth, seed: int) -> None:
    random, files = Random(seed), PlainFiles()
    model = OverlayModel(truth, random)
    path = b""
    for _ in range(30):
        before = {name: bytes(content) for name, content in files.files.items()}
        assert _step(model, files, random) == []
        path = next(
            (name for name, content in files.files.items() if content and before.get(name) != bytes(content)), path
        )
    changed = [at for at in range(len(files.files[path])) if at // PAGE in model._files[path].pages]
    place = random.choice(changed)
    files.files[path][place] ^= 4
    (wrong,) = model.check_all(files, lambda _: None)
    assert (wrong.path, wrong.offset) == (path, place - place % PAGE)


def test_bytes_behind_the_end_and_bytes_that_are_missing_are_found(truth: Truth) -> None:
    random, files = Random(3), PlainFiles()
    model = OverlayModel(truth, random)
    while not model.pages:
        assert _step(model, files, random) == []
    path = next(name for name, file in model._files.items() if file.pages)
    files.files[path] += b"more"
    assert any("more" in wrong.found or "bytes" in wrong.found for wrong in model.check_all(files, lambda _: None))
    del files.files[path][-5:]
    found = list(model.check_all(files, lambda _: None))
    assert [wrong.path for wrong in found] == [path]


def test_it_is_full_some_day(truth: Truth) -> None:
    random, files = Random(4), PlainFiles()
    model = OverlayModel(truth, random)
    for _ in range(5000):
        assert _step(model, files, random) == []
        if model.full:
            return
    pytest.fail("never full")
