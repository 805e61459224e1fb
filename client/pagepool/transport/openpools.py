"""The connections that a client of httpx keeps open, to which there is no public way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx


def pools_of(client: httpx.Client) -> Iterator[Any]:
    """The pools of connections of httpcore's: one, and one for each proxy. What is not httpx's own is a test's, and has
    none."""
    for transport in (client._transport, *client._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if pool is not None:
            yield pool


def close_expired(client: httpx.Client) -> None:
    """Close the connections that nobody has used for some seconds, or that the server has closed.

    httpx does so when it sends the next request, and until then holds them: a socket each, which the system shows as
    CLOSE-WAIT. A request that takes one at the same moment is sent over another one.
    """
    for pool in pools_of(client):
        for connection in pool.connections:
            if connection.has_expired():
                connection.close()
