"""The page at /, for people with a browser: one document, its style and its scripts. It asks the routes of `seeing`.

The files are of the package, the same for everybody, and hold no figures; so whoever reaches the service may have them.
Nothing of them comes from elsewhere, and nothing that is not one of these files is run: names that clients chose are
shown as text, and should one slip through, the policy below keeps it from being executed.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from collections.abc import Mapping

router = APIRouter()

DOCUMENT: Final = "index.html"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, and asked for again each time: after an upgrade a page and its scripts belong together.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it is, and compressed, with the headers of either."""

    body: bytes
    headers: Mapping[str, str]
    packed: bytes
    packed_headers: Mapping[str, str]


@cache
def files() -> Mapping[str, _File]:
    """The files of the page, by name."""
    found = {}
    for item in resources.files("pagepool_service.page").iterdir():
        kind = _TYPES.get(f".{item.name.rpartition('.')[2]}")
        if kind is not None:
            body = item.read_bytes()
            tag = hashlib.sha256(body).hexdigest()[:32]
            plain = {**_HEADERS, "Content-Type": kind, "ETag": f'"{tag}"'}
            packed = plain | {"ETag": f'"{tag}-gzip"', "Content-Encoding": "gzip"}
            found[item.name] = _File(body, plain, gzip.compress(body, mtime=0), packed)
    return found


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def get_page(request: Request) -> Response:
    """The page."""
    return _answer(request, DOCUMENT)


@router.api_route("/page/{file}", methods=["GET", "HEAD"], include_in_schema=False)
async def get_file(request: Request, file: str) -> Response:
    """What belongs to it."""
    return _answer(request, file)


def _answer(request: Request, name: str) -> Response:
    found = files().get(name)
    if found is None:
        raise HTTPException(404)
    takes = (part.partition(";")[0].strip() for part in request.headers.get("accept-encoding", "").split(","))
    body, headers = (found.packed, found.packed_headers) if "gzip" in takes else (found.body, found.headers)
    known = (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(","))
    if headers["ETag"] in known:
        return Response(status_code=304, headers={name: headers[name] for name in ("ETag", "Cache-Control", "Vary")})
    return Response(body, headers=dict(headers))
