"""One tree that a node has mounted, and the way to where its content comes from."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final, TypeVar

import httpx

from pagepool.content import TreeContent
from pagepool.digest import Digest
from pagepool.errors import PagepoolError, ResponseError, UnreachableError
from pagepool.node.guessing import Start
from pagepool.transport import Credentials, Session
from pagepool.transport.extents import ExtentClient
from pagepool.transport.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pagepool.content import ObjectCache
    from pagepool.image.treefile import TreeFile
    from pagepool.node.figures import Figures
    from pagepool.node.records import SourceRecord

_AGAIN_S: Final = 0.1
ATTEMPTS: Final = 3
"""Of one request, in the time that a service has."""

_DOWN: Final = frozenset({429, 502, 503, 504})
"""What a proxy answers in the place of a service that is being restarted, and whoever has had enough for now."""

_Answer = TypeVar("_Answer")


def is_down(error: Exception) -> bool:
    """Whether a service could not be asked: then it may be soon, and until then counts what is known of it."""
    return isinstance(error, UnreachableError) or (isinstance(error, ResponseError) and error.status in _DOWN)


class Source:
    """One tree, and where its content comes from.

    Args:
        record: as it is written down.
        tree: closed with this.
        cache: of the node's pool; closed by the caller.
        timeout_s: about how long a request may take.
        figures: counts what is fetched.
    """

    def __init__(
        self, record: SourceRecord, tree: TreeFile, cache: ObjectCache, timeout_s: float, figures: Figures
    ) -> None:
        self.record = record
        self.tree = tree
        self.session = open_session(record, timeout_s)
        self.failure: tuple[float, str] | None = None
        """What went wrong when something was last asked for, and when (seconds since 1970); None if nothing did."""
        where = self.session, record.repository, Digest("blake3", bytes.fromhex(record.tree))
        fetch, in_order = (figures.counted(ExtentClient(*where, as_asked=as_asked)) for as_asked in (False, True))
        self.content = TreeContent(cache, tree, fetch, in_order=in_order)
        self.start = Start(tree)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Note how what is done meanwhile ends."""
        try:
            yield
        except (PagepoolError, OSError) as error:
            self.failure = time.time(), str(error)
            raise
        self.failure = None

    def close(self) -> None:
        """End the connections."""
        self.content.close()
        self.session.close()


class Patience:
    """How long to go on asking a service that cannot be reached: it may just be starting again.

    Whoever asks first waits for all of the time. Once that was in vain everybody else gets one try, so that a program
    that opens a hundred files does not wait a hundred times; the first try that succeeds ends that.

    Args:
        timeout_s: that time.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._down: dict[str, float] = {}  # since when a service cannot be reached, on the monotonic clock

    def is_down(self, url: str) -> bool:
        """Whether the last answer that a service was asked for could not be had."""
        return url in self._down

    def ask(self, url: str, question: Callable[[], _Answer], session: Session | None = None) -> _Answer:
        """Ask until there is an answer, or no time left. Raises what the last try has raised.

        Args:
            session: what is asked over; it tries but once while the service cannot be reached: where packets vanish,
                each try takes its time.
        """
        begun = time.monotonic()
        while True:
            if session is not None:
                session.hurry(hurried=url in self._down)
            try:
                answer = question()
            except (UnreachableError, ResponseError) as error:
                if not is_down(error):
                    raise
                now = time.monotonic()
                since = self._down.setdefault(url, begun)
                if now - since >= self._timeout_s or now - begun >= self._timeout_s:
                    raise
                time.sleep(_AGAIN_S)
            else:
                self._down.pop(url, None)
                return answer


def open_session(record: SourceRecord, timeout_s: float) -> Session:
    """Connections to the service of a tree."""
    step_s = timeout_s / ATTEMPTS
    return Session(
        record.url,
        credentials=Credentials(record.username, record.password, record.identity_token),
        verify=record.verify,
        timeout=httpx.Timeout(step_s, connect=min(step_s, 10.0), pool=None),
        retry=RetryPolicy(attempts=ATTEMPTS, limit_s=min(step_s, 10.0)),  # a container waits, whatever is asked for
    )
