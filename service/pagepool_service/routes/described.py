"""Pieces of the API's description (OpenAPI) that several routes share: answers, headers, bodies.

What is described is what a client can rely on; `tests/service/test_fuzz_api.py` holds the service to it.
"""

from __future__ import annotations

from typing import Any

Responses = dict[int | str, dict[str, Any]]

_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["errors"],
    "properties": {
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "code": {"type": "string", "pattern": "^[A-Z_]+$"},
                    "message": {"type": "string"},
                    "detail": {},
                },
            },
        }
    },
}
_MEANING = {
    202: "Not ready yet.",
    400: "The request cannot be understood, or contradicts itself.",
    401: "Credentials are needed, or those that came are wrong.",
    403: "Not allowed, whether it is there or not.",
    404: "Not there.",
    405: "Not allowed here: the store is read-only, or the method is unknown.",
    409: "Another request is writing to the same upload.",
    413: "Larger than the configured limit.",
    416: "The range is not within the content, or out of order.",
    422: "Stored, and not an image that can be mounted.",
    429: "Too many uploads are open, or too many others are logging in; try again later.",
    500: "Stored bytes are damaged, or the service failed.",
    503: "Busy; try again later.",
    507: "The store is full; nothing was kept.",
}
_ANYWHERE = (400, 401, 403, 404, 429, 500, 503)
BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
PARTS: dict[str, Any] = {**BINARY, "multipart/byteranges": {"schema": {"type": "string", "format": "binary"}}}
"""Content, or several ranges of it."""


def header(description: str, **schema: Any) -> dict[str, Any]:
    """A header of an answer."""
    return {"description": description, "schema": {"type": "string", **schema}}


LOCATION = header("Where to go on.")
DIGEST = header("Digest of the content.")
LENGTH = header("Bytes of the content.")
RANGE = header("Bytes taken in so far, `0-last`.", pattern="^0-[0-9]+$")
LINK = header('The next page, `<…>; rel="next"`; absent at the end.')


def failures(*statuses: int) -> Responses:
    """Answers that are errors. Those that any route can give are always among them."""
    return {
        status: {"description": _MEANING[status], "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
        for status in sorted({*statuses, *_ANYWHERE})
    }


def head_failures(*statuses: int) -> Responses:
    """The same for HEAD, which has no bodies."""
    return {status: {"description": _MEANING[status]} for status in sorted({*statuses, *_ANYWHERE})}


def success(
    description: str, headers: dict[str, dict[str, Any]] | None = None, content: dict[str, Any] | None = None
) -> dict[str, Any]:
    """An answer that is none."""
    answer: dict[str, Any] = {"description": description}
    if headers:
        answer["headers"] = headers
    if content:
        answer["content"] = content
    return answer


def binary_body(description: str, *, required: bool) -> dict[str, Any]:
    """A request body of bytes, for `openapi_extra`."""
    return {"requestBody": {"description": description, "required": required, "content": BINARY}}


def header_parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """A header of a request that the route reads by itself, for `openapi_extra`."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string", **schema},
    }


def json_object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """The content of an answer that is a JSON object with these fields."""
    schema = {"type": "object", "properties": properties, "required": list(required or properties)}
    return {"application/json": {"schema": schema}}
