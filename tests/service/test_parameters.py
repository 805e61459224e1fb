"""What is read out of headers and paths: ranges, lengths, references."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from pagepool.digest import Digest
from pagepool.errors import PagepoolError, RangeInvalidError, SizeInvalidError, UploadInvalidError
from pagepool.oci import validate_repository, validate_tag
from pagepool_service.routes.parameters import (
    DIGEST_PATTERN,
    NAME_PATTERN,
    REFERENCE_PATTERN,
    TAG_PATTERN,
    byte_range,
    content_length,
    parse_reference,
    upload_range,
)


@given(st.text(st.sampled_from("bytes= 0123456789-,*") | st.characters(), max_size=40), st.integers(0, 1 << 40))
def test_any_range_is_within_the_content(text: str, size: int) -> None:
    """Or is all of it, or is refused."""
    for header in (text, f"bytes={text}"):
        try:
            found = byte_range(header, size)
        except RangeInvalidError:
            continue
        assert found is None or 0 <= found[0] < found[1] <= size


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 80))
def test_ranges_mean_what_python_slices_mean(first: int, last: int, size: int) -> None:
    """An independent reading of RFC 9110."""
    data = bytes(range(size))
    wanted = data[first : last + 1]
    if first > last or not wanted:
        with pytest.raises(RangeInvalidError):
            byte_range(f"bytes={first}-{last}", size)
    else:
        found = byte_range(f"bytes={first}-{last}", size)
        assert found is not None
        assert data[found[0] : found[1]] == wanted
    tail = byte_range(f"bytes=-{last + 1}", size)
    assert tail is not None
    assert data[tail[0] : tail[1]] == data[-(last + 1) :]


@pytest.mark.parametrize("start", ["", "1", "1-", "-"])
def test_blanks_are_gone_through_once(start: str) -> None:
    """Else a header of 64 KiB would hold up a worker for seconds, and these for minutes."""
    assert byte_range(f"bytes={start}{' ' * (1 << 18)}x", 10) is None


@given(st.binary(max_size=40))
def test_any_header_is_read_or_refused(value: bytes) -> None:
    """With an error of ours."""
    for name in (b"content-range", b"content-length"):
        headers = Headers(raw=[(name, value)])
        for read in (upload_range, content_length):
            try:
                read(headers)
            except PagepoolError:
                continue


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-0", (0, 1)),
        ("5-9", (5, 10)),
        (" 5-9 ", (5, 10)),
        ("bytes 5-9/10", (5, 10)),
        ("bytes 5-9/*", (5, 10)),
        ("5-9/*", (5, 10)),
        ("bytes=5-9", (5, 10)),
    ],
)
def test_upload_ranges(text: str, expected: tuple[int, int]) -> None:
    """Both ends inclusive; HTTP's own form is taken, and mixtures that clients send."""
    assert upload_range(Headers({"content-range": text})) == expected


def test_upload_range_and_length_agree() -> None:
    """Or the request is refused."""
    assert upload_range(Headers({"content-range": "0-9", "content-length": "10"})) == (0, 10)
    with pytest.raises(SizeInvalidError):
        upload_range(Headers({"content-range": "0-9", "content-length": "9"}))
    with pytest.raises(UploadInvalidError):
        upload_range(Headers({"content-range": "9-0"}))


_NAMES = st.text("abz019._-/AZ: \n", max_size=20)


@given(_NAMES)
def test_patterns_of_the_description_are_the_grammar(text: str) -> None:
    """What the description allows is what the service takes, for names, tags, and references."""
    for pattern, validate in ((NAME_PATTERN, validate_repository), (TAG_PATTERN, validate_tag)):
        assert bool(_search(pattern, text)) == _accepts(validate, text)
    assert bool(_search(REFERENCE_PATTERN, text)) == _accepts(parse_reference, text)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "blake3"])
def test_digests_match_their_pattern(algorithm: str) -> None:
    """And are references."""
    digest = Digest.of(b"x", algorithm)
    assert _search(DIGEST_PATTERN, str(digest))
    assert _search(REFERENCE_PATTERN, str(digest))
    assert parse_reference(str(digest)) == digest


def _search(pattern: str, text: str) -> object:
    # In a JSON schema `$` is the end, in Python's expressions also the place before a last line end.
    return re.search(pattern.replace("$", r"\Z"), text)


def _accepts(validate: object, text: str) -> bool:
    try:
        validate(text)  # type: ignore[operator]
    except PagepoolError:
        return False
    return True
