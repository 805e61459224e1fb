"""Tags of streams: what is equal has the same, what is not has not."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pagepool_service.streamtag import StreamTag, make_key
from tests.store.helpers import noise

DATA = noise(100_000, 1)


def _tag(key: bytes, *pieces: bytes | memoryview) -> bytes:
    taken = StreamTag(key)
    for piece in pieces:
        taken.update(piece)
    return taken.tag()


@pytest.mark.parametrize("size", [0, 1, 16, 17, 100_000])
def test_it_is_gmac(size: int) -> None:
    key = make_key()
    assert _tag(key, DATA[:size]) == AESGCM(key[:16]).encrypt(key[16:], b"", DATA[:size])


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 17, 31, 4096, 65_537, 99_999])
def test_pieces_do_not_matter(cut: int) -> None:
    key = make_key()
    view = memoryview(DATA)
    assert _tag(key, view[:cut], b"", DATA[cut:]) == _tag(key, DATA)


@pytest.mark.parametrize(
    "other", [DATA[:-1], DATA + b"\0", DATA[16:] + DATA[:16], bytes((DATA[0] ^ 1,)) + DATA[1:], b""]
)
def test_other_bytes_have_another_tag(other: bytes) -> None:
    key = make_key()
    assert _tag(key, other) != _tag(key, DATA)


def test_every_comparison_has_a_key_of_its_own() -> None:
    keys = {make_key() for _ in range(100)}
    assert len({_tag(key, DATA) for key in keys}) == len(keys) == 100
