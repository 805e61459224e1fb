"""Lists that come in pages, joined by ``Link`` headers (RFC 8288, relation ``next``)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import httpx

from pagepool.errors import UnreachableError
from pagepool.transport.http import Call, Session

_LINK = re.compile(r'<([^<>]*)>((?:\s*;\s*[\w*-]+\s*=\s*(?:"[^"]*"|[^\s",;]+))*)')
_NEXT = re.compile(r';\s*rel\s*=\s*(?:"(?:[^"]*\s)?next(?:\s[^"]*)?"|next\b)', re.IGNORECASE)


def next_link(response: httpx.Response) -> str | None:
    """The target of the link to the next page, as it was written; None on the last page."""
    for header in response.headers.get_list("Link"):
        for target, parameters in _LINK.findall(header):
            if _NEXT.search(parameters):
                return str(target)
    return None


def pages(session: Session, call: Call) -> Iterator[httpx.Response]:
    """Fetch a list page by page.

    Raises:
        UnreachableError: a link that leads in a circle, or away from the server.
    """
    seen: set[httpx.URL] = set()
    while True:
        response = session.request(call)
        yield response
        link = next_link(response)
        if link is None:
            return
        url = session.resolve(response, link)
        if url in seen or not session.same_origin(url):
            raise UnreachableError(session.where, f"its list of {call.about.name} goes on at {link[:200]!r}")
        seen.add(url)
        call = replace(call, url=url, params=())
