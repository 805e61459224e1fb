"""JSON in the bodies of requests: read whole, bounded, and taken apart with errors that say what is wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pagepool.errors import InvalidError
from pagepool_service.routes.extents import read_body

if TYPE_CHECKING:
    from fastapi import Request

    from pagepool_service.routes.context import Context


async def read_object(request: Request, service: Context, limit: int, what: str) -> dict[str, Any]:
    """The JSON object that is a request's body.

    Raises:
        InvalidError: it is none.
        LimitError: it is larger than `limit`.
    """
    body = await read_body(request, service, limit, what)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidError("body", "it is not JSON") from error
    if not isinstance(document, dict):
        raise InvalidError("body", "it is no object")
    return document


def text_field(document: dict[str, Any], name: str, most: int) -> str:
    """A field of 1 to `most` characters.

    Raises:
        InvalidError: it is none.
    """
    value = document.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise InvalidError("body", f"{name} is no text of 1 to {most} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidError("body", f"{name} has characters that are none") from error
    return value


def json_body(description: str, required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    """The description of a body that is an object with these fields, for `openapi_extra`."""
    schema = {"type": "object", "required": list(required), "properties": properties}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"description": description, "required": True, "content": content}}
