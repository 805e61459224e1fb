"""What comes with requests: names, digests and references out of the path, ranges and lengths out of headers.

Paths are taken apart by the routes; `RepositoryConvertor` lets a name have slashes. The grammar is checked here, by
the same functions that the client uses, so that what is wrong is named in OCI's words; the patterns in the API's
description say the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Path, Query
from starlette.convertors import Convertor, register_url_convertor

from pagepool.digest import Digest
from pagepool.errors import (
    InvalidError,
    ManifestUnknownError,
    RangeInvalidError,
    SizeInvalidError,
    TagInvalidError,
    UploadInvalidError,
)
from pagepool.oci import validate_repository, validate_tag

if TYPE_CHECKING:
    from starlette.datastructures import Headers

NAME_PATTERN = r"^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$"
TAG_PATTERN = r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$"
DIGEST_PATTERN = r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}|blake3:[0-9a-f]{64})$"
REFERENCE_PATTERN = f"({DIGEST_PATTERN})|({TAG_PATTERN})"
MOST_LISTED = 10_000
USUALLY_LISTED = 1000

UPLOAD_RANGE_PATTERN = r"^(bytes[ =])?[0-9]{1,19}-[0-9]{1,19}(/([0-9]{1,19}|\*))?$"
_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?([0-9]{1,19})-([0-9]{1,19})(?:/(?:[0-9]{1,19}|\*))?", re.IGNORECASE)
# "*+": blanks that are given back would be tried again for each of them.
_BYTE_RANGE = re.compile(r"bytes\s*=\s*+([0-9]{0,19})\s*-\s*+([0-9]{0,19})\s*", re.IGNORECASE)


class RepositoryConvertor(Convertor[str]):
    """Any text with any characters, slashes and line ends too: what is no name gets NAME_INVALID, not a bare 404."""

    regex = "(?s:.+)"

    def convert(self, value: str) -> str:
        """The text itself."""
        return value

    def to_string(self, value: str) -> str:
        """The text itself."""
        return value


register_url_convertor("repository", RepositoryConvertor())


def _documented(pattern: str, **more: Any) -> dict[str, Any]:
    return {"pattern": pattern, **more}


async def _repository(
    name: Annotated[
        str, Path(description="Repository name.", json_schema_extra=_documented(NAME_PATTERN, maxLength=255))
    ],
) -> str:
    return validate_repository(name)


async def _digest(
    digest: Annotated[str, Path(description="Digest.", json_schema_extra=_documented(DIGEST_PATTERN))],
) -> Digest:
    return Digest.parse(digest)


async def _reference(
    reference: Annotated[str, Path(description="Tag or digest.", json_schema_extra=_documented(REFERENCE_PATTERN))],
) -> Digest | str:
    return parse_reference(reference)


async def _sought(
    reference: Annotated[str, Path(description="Tag or digest.", json_schema_extra=_documented(REFERENCE_PATTERN))],
) -> Digest | str:
    try:
        return parse_reference(reference)
    except TagInvalidError:  # no manifest is called so, and what is not found is 404 (distribution-spec v1.1)
        raise ManifestUnknownError(reference[:128]) from None


async def _limit(
    n: Annotated[
        str | None,
        Query(
            description=f"Most entries to return; at most {MOST_LISTED}. More are announced by `Link`.",
            json_schema_extra={"type": "integer", "minimum": 0, "maximum": 10**17},
        ),
    ] = None,
) -> int:
    if not n:  # an empty one is none, as to docker-registry
        return USUALLY_LISTED
    if not re.fullmatch(r"[0-9]{1,18}", n):
        raise InvalidError(n[:32], "n must be a number, 0 or more")
    return min(int(n), MOST_LISTED)


async def _last(
    last: Annotated[str, Query(description="Return what comes after this entry, in byte order.")] = "",
) -> str:
    return last


Repository = Annotated[str, Depends(_repository)]
BlobDigest = Annotated[Digest, Depends(_digest)]
Reference = Annotated[Digest | str, Depends(_reference)]
Sought = Annotated[Digest | str, Depends(_sought)]
"""As `Reference`, of what is asked for and may not be there."""
Limit = Annotated[int, Depends(_limit)]
Last = Annotated[str, Depends(_last)]


def parse_reference(text: str) -> Digest | str:
    """A digest, or a tag.

    Raises:
        DigestInvalidError, DigestUnsupportedError, TagInvalidError: it is neither.
    """
    return Digest.parse(text) if ":" in text else validate_tag(text)


def content_length(headers: Headers) -> int | None:
    """The announced length of a body, or None if it is not announced.

    Raises:
        SizeInvalidError: not a length.
    """
    text = headers.get("content-length")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise SizeInvalidError(text[:32], "Content-Length is not a number")
    return int(text)


def upload_range(headers: Headers) -> tuple[int, int] | None:
    """The bytes `[start, end)` that a chunk is said to be, or None if nothing is said.

    The form is distribution-spec's ``start-end``, both inclusive, without a unit. HTTP's own, ``bytes start-end/size``
    or ``/*``, is taken, too; the size is not heeded. Neither has words for no bytes; clients that send such a body say
    ``0-0``, or that it ends before it begins.

    Raises:
        UploadInvalidError: it is of another form.
        SizeInvalidError: the length of the body contradicts it.
    """
    text = headers.get("content-range")
    if text is None:
        return None
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None:
        raise UploadInvalidError(text[:64], "Content-Range must be first-last, both inclusive")
    start, end = int(match[1]), int(match[2]) + 1
    length = content_length(headers)
    if length == 0 and (end == start or end == 1):
        return start, start
    if end <= start:
        raise UploadInvalidError(text[:64], "Content-Range ends before it begins")
    if length is not None and length != end - start:
        raise SizeInvalidError(length, f"Content-Range {text} has {end - start} bytes")
    return start, end


def byte_range(text: str | None, size: int) -> tuple[int, int] | None:
    """The bytes `[start, end)` that a ``Range`` header asks for; None for all of the content.

    A header of another unit, of several ranges, or that cannot be read is ignored, as RFC 9110, section 14.2 allows.

    Raises:
        RangeInvalidError: nothing of the range is within the content, or it ends before it begins.
    """
    match = _BYTE_RANGE.fullmatch(text or "")
    if match is None or (not match[1] and not match[2]):
        return None
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start = int(match[1])
        end = min(size, int(match[2]) + 1) if match[2] else size
    if start >= end:
        raise RangeInvalidError((text or "")[:64], f"the content has {size} bytes")
    return start, end


def next_link(path: str, **query: object) -> dict[str, str]:
    """The header that names the next page of a list."""
    return {"Link": f'<{path}?{urlencode(query, errors="replace")}>; rel="next"'}
