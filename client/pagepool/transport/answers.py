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
    CorruptError,
    DeniedError,
    DigestInvalidError,
    DigestUnsupportedError,
    ExtentUnknownError,
    ImageInvalidError,
    InvalidError,
    LayerInvalidError,
    LeaseUnknownError,
    ManifestBlobUnknownError,
    ManifestInvalidError,
    ManifestUnknownError,
    NameInvalidError,
    NameUnknownError,
    NotFoundError,
    ObjectUnknownError,
    PagepoolError,
    PathUnknownError,
    ProfileUnknownError,
    RangeInvalidError,
    ReadOnlyError,
    ReferenceInvalidError,
    ResponseError,
    SizeInvalidError,
    StoreFailedError,
    StoreFullError,
    TagInvalidError,
    TreeUnknownError,
    UnauthorizedError,
    UnsupportedError,
    UploadInvalidError,
    UploadUnknownError,
)
from pagepool.oci.fields import Object, load_object

_MAX_SHOWN = 500
_OF_IMAGES = frozenset(("LAYER_INVALID", "MANIFEST_UNKNOWN"))


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request is about: says which error a bare 404 means, and what messages name.

    Args:
        missing: the error for 404 without a code.
        name: the digest, tag, path or repository asked for.
        repository: the repository it should be in, if `name` is not that.
        image: the image it should be in, if `name` is something in one.
    """

    missing: type[NotFoundError]
    name: str
    repository: str = ""
    image: str = ""

    def of(self, code: str) -> str:
        """What an error of this code is about: a path can be asked for in an image that is not there."""
        if code.startswith("NAME_"):
            return self.repository or self.name
        return self.image or self.name if code in _OF_IMAGES else self.name


_Maker = Callable[[str, str], PagepoolError]  # (name of what was asked for, the service's own words)


def _missing(error: type[NotFoundError]) -> _Maker:
    return lambda name, _: error(name)


def _invalid(error: type[InvalidError]) -> _Maker:
    # pagepool's service says the same words before the bad value that this side's error begins with.
    return lambda name, words: error(name, words.removeprefix(f"invalid {error.what} "))


def _manifest_unknown(name: str, words: str) -> PagepoolError:
    # What pagepool's service says where an image is there, and not for the platform that was asked for.
    inner = words.removeprefix("manifest unknown: ")
    return ManifestUnknownError(f"{name} {inner}" if inner.startswith("for ") else name)


def _store_full(_: str, words: str) -> PagepoolError:
    return StoreFullError(words.removeprefix("the store is full: "))


def _store_failed(_: str, words: str) -> PagepoolError:
    return StoreFailedError(words.removeprefix("the disk under the store fails: "))


def _read_only(_: str, words: str) -> PagepoolError:
    return ReadOnlyError(words.removeprefix("the store cannot be written to: "))


_BY_CODE: dict[str, _Maker] = {
    # distribution-spec v1.1.0, "Error Codes"
    "BLOB_UNKNOWN": _missing(BlobUnknownError),
    "BLOB_UPLOAD_INVALID": _invalid(UploadInvalidError),
    "BLOB_UPLOAD_UNKNOWN": _missing(UploadUnknownError),
    "DIGEST_INVALID": _invalid(DigestInvalidError),
    "MANIFEST_BLOB_UNKNOWN": _invalid(ManifestBlobUnknownError),
    "MANIFEST_INVALID": _invalid(ManifestInvalidError),
    "MANIFEST_UNKNOWN": _manifest_unknown,
    "NAME_INVALID": _invalid(NameInvalidError),
    "NAME_UNKNOWN": _missing(NameUnknownError),
    "SIZE_INVALID": _invalid(SizeInvalidError),
    "UNAUTHORIZED": lambda _, words: UnauthorizedError(words),
    "DENIED": lambda _, words: DeniedError(words),
    "UNSUPPORTED": lambda _, words: UnsupportedError(words),
    # Docker's registry, and pagepool's service
    "TAG_INVALID": _invalid(TagInvalidError),
    "RANGE_INVALID": _invalid(RangeInvalidError),
    "REFERENCE_INVALID": _invalid(ReferenceInvalidError),
    "DIGEST_UNSUPPORTED": _invalid(DigestUnsupportedError),
    "LAYER_INVALID": _invalid(LayerInvalidError),
    "PATH_UNKNOWN": _missing(PathUnknownError),
    "TREE_UNKNOWN": _missing(TreeUnknownError),
    "OBJECT_UNKNOWN": _missing(ObjectUnknownError),
    "EXTENT_UNKNOWN": _missing(ExtentUnknownError),
    "LEASE_UNKNOWN": _missing(LeaseUnknownError),
    "PROFILE_UNKNOWN": _missing(ProfileUnknownError),
    "STORE_FULL": _store_full,
    "STORE_FAILED": _store_failed,
    "READ_ONLY": _read_only,
    "CORRUPT": lambda name, words: CorruptError("content", name, words),
    "BUSY": lambda _, words: BusyError(words),
}

_BY_STATUS: dict[int, _Maker] = {
    401: _BY_CODE["UNAUTHORIZED"],
    403: _BY_CODE["DENIED"],
    405: _BY_CODE["UNSUPPORTED"],
    416: _invalid(RangeInvalidError),
    422: _invalid(ImageInvalidError),
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
    if code == "UNSUPPORTED" and response.status_code == 422:
        code = ""  # there is a request for which this image will not do; the route itself is supported
    words = message or f"{response.status_code} {response.reason_phrase}".strip()
    if response.status_code == 403 and not body:  # answers to HEAD have none
        words = f"{words}: you may not do that in {about.repository or about.name}"
    maker = _BY_CODE.get(code)
    if maker is None and response.status_code == 404:
        maker = _missing(about.missing)
    maker = maker or _BY_STATUS.get(response.status_code)
    return maker(about.of(code), words) if maker else ResponseError(response.status_code, code, words)


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
