"""Connections for what a mount has to ask first: which tree an image is. Kept open between mounts.

Content comes over other ones, which each tree has of its own (`sources`): whoever mounts does not queue behind it.
"""

from __future__ import annotations

import importlib
import threading
import time
from typing import TYPE_CHECKING, Final

from pagepool.node.source import open_session
from pagepool.transport import Session
from pagepool.transport.trust import context_of

if TYPE_CHECKING:
    from pagepool.node.records import SourceRecord

_IDLE_S: Final = 3600.0
"""Longer than any conversation with a service takes."""


class Sessions:
    """Open connections, by service and credentials. Thread-safe.

    Args:
        timeout_s: about how long a request may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._sessions: dict[tuple[object, ...], tuple[Session, float]] = {}

    def get(self, record: SourceRecord) -> Session:
        """The connections to where a tree comes from. They are not the caller's to close."""
        with self._lock:
            found = self._sessions.get(record.access)
            session = open_session(record, self._timeout_s) if found is None else found[0]
            self._sessions[record.access] = session, time.monotonic()
            return session

    def close_idle(self, idle_s: float = _IDLE_S) -> int:
        """Close those that nobody has asked for in a while, and of others what has not been used for some seconds.
        Returns how many there are left."""
        until = time.monotonic() - idle_s
        with self._lock:
            old = {key: session for key, (session, used) in self._sessions.items() if used <= until}
            for key in old:
                del self._sessions[key]
            left = [session for session, _ in self._sessions.values()]
        for session in old.values():
            session.close()
        for session in left:
            session.close_expired()
        return len(left)


def prepare() -> None:
    """Load what the first mount needs, which takes longer than the rest of it: nobody waits for that now. And what
    unmounts: by then there may be another version of it, until the node is replaced."""
    importlib.import_module("pagepool.mount.kernel.listing")
    importlib.import_module("pagepool.mount.records")
    with Session("http://127.0.0.1") as session:
        session.base.host.encode("idna")  # as a request does
    importlib.import_module("pagepool.mount.kernel.erofs")
    importlib.import_module("pagepool.mount.kernel.stack")


def look_at_authorities() -> None:
    """Have the system's authorities at hand, read again if it is time to."""
    context_of(verify=True)
