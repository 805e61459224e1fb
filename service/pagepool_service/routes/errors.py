"""Errors as answers: one table from class to HTTP status and OCI error code.

Every answer of the service that is an error comes from here, in the form of distribution-spec v1.1 "Error Codes".
The table names each class of `pagepool.errors` (a test compares); a class is looked up by itself, then by its bases.
The service's own classes that have an answer of their own are in a table beside it.
Codes beyond the specification's, where it has none: RANGE_INVALID and TAG_INVALID (as Docker's registry has them),
REFERENCE_INVALID, LAYER_INVALID, PATH_UNKNOWN, TREE_UNKNOWN, OBJECT_UNKNOWN, EXTENT_UNKNOWN,
LEASE_UNKNOWN, PROFILE_UNKNOWN,
STORE_FULL, STORE_FAILED, READ_ONLY, BUSY, CORRUPT, UNAVAILABLE, UNKNOWN.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from pagepool import errors
from pagepool.linux.threads import is_want_of_threads
from pagepool_service import requestids
from pagepool_service.auth import TooManyLoginsError
from pagepool_service.uploadfiles import TooManyUploadsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI, Request
    from starlette.routing import BaseRoute

log = logging.getLogger("pagepool.http")

TABLE: dict[type[Exception], tuple[int, str]] = {
    errors.PagepoolError: (500, "UNKNOWN"),
    errors.InvalidError: (400, "UNSUPPORTED"),
    errors.DigestInvalidError: (400, "DIGEST_INVALID"),
    errors.DigestUnsupportedError: (400, "DIGEST_INVALID"),
    errors.DigestMismatchError: (400, "DIGEST_INVALID"),
    errors.NameInvalidError: (400, "NAME_INVALID"),
    errors.TagInvalidError: (400, "TAG_INVALID"),
    errors.ReferenceInvalidError: (400, "REFERENCE_INVALID"),
    errors.ManifestInvalidError: (400, "MANIFEST_INVALID"),
    errors.ManifestBlobUnknownError: (400, "MANIFEST_BLOB_UNKNOWN"),
    errors.RangeInvalidError: (416, "RANGE_INVALID"),
    errors.SizeInvalidError: (400, "SIZE_INVALID"),
    errors.UploadInvalidError: (400, "BLOB_UPLOAD_INVALID"),
    errors.LayerInvalidError: (422, "LAYER_INVALID"),
    errors.ImageInvalidError: (422, "UNSUPPORTED"),
    errors.LimitError: (413, "SIZE_INVALID"),
    errors.KernelLimitError: (413, "SIZE_INVALID"),
    errors.NotFoundError: (404, "NAME_UNKNOWN"),
    errors.BlobUnknownError: (404, "BLOB_UNKNOWN"),
    errors.ManifestUnknownError: (404, "MANIFEST_UNKNOWN"),
    errors.NameUnknownError: (404, "NAME_UNKNOWN"),
    errors.UploadUnknownError: (404, "BLOB_UPLOAD_UNKNOWN"),
    errors.PathUnknownError: (404, "PATH_UNKNOWN"),
    errors.TreeUnknownError: (404, "TREE_UNKNOWN"),
    errors.ObjectUnknownError: (404, "OBJECT_UNKNOWN"),
    errors.ExtentUnknownError: (404, "EXTENT_UNKNOWN"),
    errors.LeaseUnknownError: (404, "LEASE_UNKNOWN"),
    errors.ProfileUnknownError: (404, "PROFILE_UNKNOWN"),
    errors.StoreFullError: (507, "STORE_FULL"),
    errors.StoreFailedError: (507, "STORE_FAILED"),
    errors.DiskFullError: (507, "STORE_FULL"),
    errors.PoolFullError: (507, "STORE_FULL"),
    errors.ReadOnlyError: (405, "READ_ONLY"),
    errors.StoreFormatError: (503, "UNAVAILABLE"),
    errors.BusyError: (503, "BUSY"),
    errors.UploadBusyError: (409, "BUSY"),
    errors.PendingError: (202, "UNAVAILABLE"),
    errors.UnauthorizedError: (401, "UNAUTHORIZED"),
    errors.DeniedError: (403, "DENIED"),
    errors.UnsupportedError: (405, "UNSUPPORTED"),
    errors.UnreachableError: (502, "UNAVAILABLE"),
    errors.ListenError: (502, "UNAVAILABLE"),
    errors.ResponseError: (502, "UNAVAILABLE"),
    # Containers run on nodes; the service never raises these.
    errors.ContainerError: (400, "UNSUPPORTED"),
    errors.CommandRefusedError: (400, "UNSUPPORTED"),
    errors.CommandUnknownError: (400, "UNSUPPORTED"),
    errors.CorruptError: (500, "CORRUPT"),
}
_OURS: dict[type[Exception], tuple[int, str]] = {
    TooManyUploadsError: (429, "TOOMANYREQUESTS"),
    TooManyLoginsError: (429, "TOOMANYREQUESTS"),
}

# As docker-registry words it, for scripts and test suites that look for that in what clients print; what is unknown
# follows. docker takes the words alone, without any detail, for an error that is worth trying again.
_WORDS = {
    "BLOB_UNKNOWN": "blob unknown to registry",
    "MANIFEST_UNKNOWN": "manifest unknown",
    "NAME_UNKNOWN": "repository name not known to registry",
}

# Answers that HTTP wants another header with.
_HEADERS = {
    405: {"Allow": "GET, HEAD"},
    409: {"Retry-After": "1"},
    429: {"Retry-After": "5"},
    503: {"Retry-After": "5"},
}
_PARAMETERS = {"digest": "DIGEST_INVALID", "mount": "DIGEST_INVALID", "name": "NAME_INVALID", "from": "NAME_INVALID"}


def status_and_code(error: Exception) -> tuple[int, str]:
    """The HTTP status and OCI code of an error."""
    answers = TABLE | _OURS
    return next((answers[kind] for kind in type(error).__mro__ if kind in answers), (500, "UNKNOWN"))


def render(error: Exception, **headers: str) -> JSONResponse:
    """The answer to a request that failed."""
    status, code = status_and_code(error)
    own = getattr(error, "headers", {})  # of a challenge
    headers = {**_HEADERS.get(status, {}), **own, **headers}
    return error_response(status, code, _message(error, code), _detail(error), headers)


def error_response(
    status: int, code: str, message: str, detail: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An answer in the specification's form."""
    # What a client sent may hold lone surrogates, which no answer can.
    text = message.encode(errors="replace").decode()
    body: dict[str, Any] = {"code": code, "message": text}
    if status >= 500 and (request := requestids.current.get()):  # the log says more, under this
        detail = {**(detail or {}), "request_id": request}
    if detail is not None:
        body["detail"] = detail
    return JSONResponse({"errors": [body]}, status, headers)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Make an application answer every error through the table.

    Args:
        routes: all that it has; which methods there are for a path is said by them.
    """
    app.state.routes = tuple(routes)
    app.add_exception_handler(errors.PagepoolError, _on_pagepool_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(RuntimeError, _on_runtime_error)
    app.add_exception_handler(Exception, _on_unexpected)


async def _on_pagepool_error(request: Request, error: Exception) -> JSONResponse:
    status, _ = status_and_code(error)
    if status >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error)
    return render(error)


async def _on_invalid_parameter(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return error_response(400, _PARAMETERS.get(name, "UNSUPPORTED"), f"{name}: {first['msg']}")


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {HTTPStatus(error.status_code).phrase.lower()}"
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_methods_of(request)))
    return error_response(error.status_code, "UNSUPPORTED", message, headers=headers)


def _methods_of(request: Request) -> set[str]:
    """What may be done with what a request names. Each method has its own route."""
    routes: Sequence[BaseRoute] = request.app.state.routes
    found = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in found for method in getattr(route, "methods", None) or ()}


async def _on_disconnect(request: Request, _error: Exception) -> JSONResponse:
    # Nobody reads this but a client that stopped sending and is still there.
    log.info("%s %s: the client left in the middle of the body", request.method, request.url.path)
    return error_response(408, "SIZE_INVALID", "the body did not arrive in time", headers={"Connection": "close"})


async def _on_runtime_error(request: Request, error: Exception) -> JSONResponse:
    """There may be no more threads."""
    if not is_want_of_threads(error):
        raise error
    busy = errors.BusyError("no more threads can be started: see ulimit -u, and pids.max of the service's cgroup")
    return await _on_pagepool_error(request, busy)


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(500, "UNKNOWN", "an internal error; the service's log has more")


def _message(error: Exception, code: str) -> str:
    if isinstance(error, errors.NotFoundError) and code in _WORDS:
        return f"{_WORDS[code]}: {error.name}"
    return str(error)


def _detail(error: Exception) -> dict[str, Any] | None:
    """The data an error carries, for programs."""
    if isinstance(error, errors.DigestMismatchError):
        return {"expected": str(error.expected), "got": str(error.got), "size": error.size}
    if isinstance(error, errors.LimitError):
        return {"what": error.what, "size": error.size, "limit": error.limit}
    if isinstance(error, errors.CorruptError):
        return {"kind": error.kind, "name": error.name}
    if isinstance(error, errors.ManifestBlobUnknownError):
        return {"digest": str(error.value)}
    return None
