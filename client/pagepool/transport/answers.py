"""What a registry's error answers mean, as pagepool's errors: the one table of OCI codes on the client's
side.

A code the table knows decides; else the status does, together with what was asked for; else it is a
ResponseError. pagepool's own service sends more codes than the specification has; those are in the table too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import httpx

from pagepool.errors import (
    BlobUnknownError,
    BusyError,
    DeniedError,
    DigestInvalidError,
    DigestUnsupportedError,
    LayerInvalidError,
    ManifestBlobUnknownError,
    ManifestInvalidError,
    ManifestUnknownError,
    NameInvalidError,
    NameUnknownError,
    NotFoundError,
    PagepoolError,
    PathUnknownError,
    RangeInvalidError,
    ReadOnlyError,
    ReferenceInvalidError,
    ResponseError,
    SizeInvalidError,
    StoreFullError,
    TagInvalidError,
    UnauthorizedError,
    UnsupportedError,
    UploadInvalidError,
    UploadUnknownError,
)
from pagepool.oci.fields import Object, load_object

_MAX_SHOWN = 500


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request is about: says which error a bare 404 means, and what messages name.

    Args:
        missing: the error for 404 without a code.
        name: the digest, tag, path or repository asked for.
    """

    missing: type[NotFoundError]
    name: str


_Maker = Callable[[str, str], PagepoolError]  # (name of what was asked for, the service's own words)


def _missing(error: type[NotFoundError]) -> _Maker:
    return lambda name, _: error(name)


_BY_CODE: dict[str, _Maker] = {
    # distribution-spec v1.1.0, "Error Codes"
    "BLOB_UNKNOWN": _missing(BlobUnknownError),
    "BLOB_UPLOAD_INVALID": UploadInvalidError,
    "BLOB_UPLOAD_UNKNOWN": _missing(UploadUnknownError),
    "DIGEST_INVALID": DigestInvalidError,
    "MANIFEST_BLOB_UNKNOWN": ManifestBlobUnknownError,
    "MANIFEST_INVALID": ManifestInvalidError,
    "MANIFEST_UNKNOWN": _missing(ManifestUnknownError),
    "NAME_INVALID": NameInvalidError,
    "NAME_UNKNOWN": _missing(NameUnknownError),
    "SIZE_INVALID": SizeInvalidError,
    "UNAUTHORIZED": lambda _, words: UnauthorizedError(words),
    "DENIED": lambda _, words: DeniedError(words),
    "UNSUPPORTED": lambda _, words: UnsupportedError(words),
    # Docker's registry, and pagepool's service
    "TAG_INVALID": TagInvalidError,
    "RANGE_INVALID": RangeInvalidError,
    "REFERENCE_INVALID": ReferenceInvalidError,
    "DIGEST_UNSUPPORTED": DigestUnsupportedError,
    "LAYER_INVALID": LayerInvalidError,
    "PATH_UNKNOWN": _missing(PathUnknownError),
    "STORE_FULL": lambda _, words: StoreFullError(words),
    "READ_ONLY": lambda _, words: ReadOnlyError(words),
    "BUSY": lambda _, words: BusyError(words),
}

_BY_STATUS: dict[int, _Maker] = {
    401: _BY_CODE["UNAUTHORIZED"],
    403: _BY_CODE["DENIED"],
    405: _BY_CODE["UNSUPPORTED"],
    416: RangeInvalidError,
    507: _BY_CODE["STORE_FULL"],
}


def error_of(response: httpx.Response, body: bytes, about: Subject) -> PagepoolError:
    """Turn an error answer into the exception to raise.

    Args:
        response: the answer; only its status is used.
        body: the beginning of its body, which may be anything.
        about: what was asked for.
    """
    code, message = parse_error_body(body)
    words = message or f"{response.status_code} {response.reason_phrase}".strip()
    maker = _BY_CODE.get(code)
    if maker is None and response.status_code == 404:
        maker = _missing(about.missing)
    maker = maker or _BY_STATUS.get(response.status_code)
    return maker(about.name, words) if maker else ResponseError(response.status_code, code, words)


def parse_error_body(body: bytes) -> tuple[str, str]:
    """The first code and message in an error document; both "" if it is none."""
    try:
        fields = load_object(body, "error", _NotAnError)
        first: Object = next(iter(fields.objects("errors")))
        code = first.optional_string("code").upper()
        return code, _one_line(first.optional_string("message") or code)
    except (_NotAnError, StopIteration):
        return "", ""


class _NotAnError(PagepoolError):
    """The body does not follow the specification. Proxies answer with HTML."""


def _one_line(text: str) -> str:
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:_MAX_SHOWN]
