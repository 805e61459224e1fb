"""Answers of several parts, read by the standard library."""

from __future__ import annotations

import email
import email.policy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


def parts_of(answer: httpx.Response) -> list[tuple[str, bytes]]:
    """The parts of a multipart answer, by the standard library's parser: (Content-Range, bytes)."""
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.content, policy=email.policy.HTTP)
    assert not message.defects
    found = []
    for part in message.iter_parts():
        assert part.get_content_type() == "application/octet-stream"
        found.append((str(part["Content-Range"]), part.get_payload(decode=True)))
    return found  # type: ignore[return-value]
