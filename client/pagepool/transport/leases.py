"""Leases on trees at a pagepool service: what a node has mounted is kept there. Blocks; thread-safe."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from pagepool.digest import Digest
from pagepool.errors import LeaseUnknownError, TreeUnknownError
from pagepool.oci.fields import load_object
from pagepool.transport.answers import Subject
from pagepool.transport.auth import repository_scope
from pagepool.transport.http import Call, Session
from pagepool.transport.service import answer_error


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease on a tree.

    Args:
        id: names it when it is renewed or released.
        expires_s: when it ends, in seconds since 1970 by this machine's clock: no later than the service thinks,
            however the two clocks differ.
    """

    id: str
    expires_s: float


class LeaseClient:
    """The lease routes. The caller closes the session.

    Args:
        session: the service.
        clock: seconds since 1970; tests replace it.
    """

    def __init__(self, session: Session, clock: Callable[[], float] = time.time) -> None:
        self._session = session
        self._clock = clock

    def hold(self, name: str, tree: Digest, holder: str, ttl_s: int, lease: str | None = None) -> Lease:
        """Keep a tree readable in a repository for `ttl_s` seconds from now on, whatever is deleted there.

        Args:
            holder: who wants it, in at most 255 characters for people.
            ttl_s: at most a week.
            lease: the one to renew. If that has ended meanwhile a new one is taken, with another id.

        Raises:
            TreeUnknownError: the repository does not have the tree (any more).
            LimitError: it has too many leases.
            ReadOnlyError, StoreFullError: the service cannot take one now.
            UnsupportedError: it knows of no leases.
        """
        fields = {"holder": holder, "ttl_s": ttl_s} | ({} if lease is None else {"lease": lease})
        body = json.dumps(fields).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        about = Subject(TreeUnknownError, str(tree), name)
        path = f"/v1/{name}/trees/{tree}/lease"
        begun = self._clock()
        # Sent again after an answer was lost it takes another lease: the first one ends by itself.
        scope = repository_scope(name)
        call = Call("POST", path, about, expect=(200, 201), headers=headers, body=lambda: (body,), scope=scope)
        answer = load_object(self._session.request(call).content, "answer", answer_error)
        return Lease(answer.string("id"), begun + answer.integer("ttl_s"))

    def release(self, name: str, tree: Digest, lease: str) -> None:
        """End a lease. One that has ended already is no error.

        Raises:
            ReadOnlyError, StoreFullError: the service cannot end it now; it ends by itself.
        """
        about = Subject(LeaseUnknownError, lease, name)
        call = Call(
            "DELETE", f"/v1/{name}/trees/{tree}/lease/{lease}", about, expect=(204,), scope=repository_scope(name)
        )
        with contextlib.suppress(LeaseUnknownError):
            self._session.request(call)
