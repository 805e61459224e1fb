"""Fetches extents of a tree from the service: each is verified, and asked for again only if it did not come.

`ExtentClient` blocks and is what a pool is filled with; `AsyncExtentClient` is the same on httpx's asynchronous client.
Both are thin: `_Errand` decides what is still to be asked for. What comes is yielded at once, in the order of the
service's store, extents that nobody asked for among them (they belong to the same tree, and are verified, too).

A stream that breaks off, stalls, or cannot be read is asked for again, without what came; after
`RetryPolicy.attempts` in a row that brought nothing the error is raised. Extents that came with wrong bytes, or that
the service cannot give, are told when everything else has come: the caller decides whether to try again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress

import httpx

from pagepool.digest import Digest, blake3_raw
from pagepool.errors import CorruptError, PagepoolError, TreeUnknownError, UnreachableError
from pagepool.extents import Frame
from pagepool.extents.wire import (
    MAX_WANTED,
    MEDIA_TYPE,
    EndRecord,
    FailureRecord,
    StreamDecoder,
    encode_wanted,
)
from pagepool.transport import asyncpace
from pagepool.transport.answers import Subject, error_of
from pagepool.transport.auth import repository_scope
from pagepool.transport.http import Call, Session
from pagepool.transport.retry import RETRY_STATUSES, RetryPolicy

Extent = tuple[bytes, memoryview]
_MAX_ERROR_BODY = 64 << 10
_RECORDS_EACH = 2
"""For each extent that is asked for, at most: each record brings one of them, or says why not."""


class ExtentClient:
    """Fetches extents of one tree. Thread-safe; the caller closes the session.

    Args:
        session: the service.
        name: repository.
        tree: the tree's digest, raw or with its algorithm.
        as_asked: whether extents are to come about in the order in which they are asked for: what is wanted first is
            here first. Else they come as the service reads them fastest.
    """

    def __init__(self, session: Session, name: str, tree: Digest | bytes, *, as_asked: bool = False) -> None:
        self._session = session
        self._target = _Target(name, tree, (("order", "asked"),) if as_asked else ())

    def __call__(self, wanted: Sequence[bytes]) -> Iterator[Extent]:
        """Fetch extents.

        Args:
            wanted: raw BLAKE3 digests, in any order.

        Yields:
            (digest, verified bytes) of each, and of others of the tree that came along.

        Raises:
            ExtentUnknownError, TreeUnknownError: the tree does not have one of them, or is not in the repository.
            CorruptError: the service has wrong bytes of one, or none, or what came is wrong; it names the extent.
            UnreachableError: the service cannot be reached, or broke off again and again.
        """
        for part in _parts(wanted):
            errand = _Errand(part, self._session.retry, self._session.where)
            while not errand.done:
                yield from self._attempt(errand)
                if errand.wait_s is not None:
                    self._session.retry.sleep(errand.wait_s)
            errand.finish()

    def _attempt(self, errand: _Errand) -> Iterator[Extent]:
        errand.begin()
        with self._session.stream(self._target.call(errand.body())) as response:
            try:
                for chunk in response.iter_raw():
                    yield from errand.feed(chunk)
                errand.close()
            except httpx.HTTPError as error:
                errand.broke(self._session.translate(error))
            except CorruptError as error:
                errand.broke(error)


class AsyncExtentClient:
    """Fetches extents of one tree, asynchronously.

    Args:
        client: has the service's address as its `base_url`; the caller closes it. Of its requests for extents an answer
            that trickles is given up: see `asyncpace`.
        name: repository.
        tree: the tree's digest, raw or with its algorithm.
        retry: bounds of trying again; its `sleep` is not used.
    """

    def __init__(
        self, client: httpx.AsyncClient, name: str, tree: Digest | bytes, retry: RetryPolicy | None = None
    ) -> None:
        self._client = client
        self._target = _Target(name, tree)
        self._retry = retry or RetryPolicy()

    async def __call__(self, wanted: Sequence[bytes]) -> AsyncIterator[Extent]:
        """Fetch extents, as `ExtentClient` does. Close the iterator if you do not go through all of it."""
        for part in _parts(wanted):
            errand = _Errand(part, self._retry, self._client.base_url.netloc.decode("ascii"))
            while not errand.done:
                async for extent in self._attempt(errand):
                    yield extent
                if errand.wait_s is not None:
                    await asyncio.sleep(errand.wait_s)
            errand.finish()

    async def _attempt(self, errand: _Errand) -> AsyncIterator[Extent]:
        errand.begin()
        headers = self._target.headers(errand.body())
        request = self._client.build_request("POST", self._target.path, content=errand.body(), headers=headers)
        try:
            response = await asyncpace.send(self._client, request)
            try:
                await self._check(response)
                async for chunk in asyncpace.Pieces(response):
                    for extent in errand.feed(chunk):
                        yield extent
            finally:
                with suppress(httpx.HTTPError):
                    await response.aclose()
            errand.close()
        except httpx.HTTPError as error:
            errand.broke(_unreachable(error, errand.where))
        except _AgainError as error:
            errand.broke(error.error, error.after)
        except CorruptError as error:
            errand.broke(error)

    async def _check(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            return
        body = bytearray()
        async for chunk in asyncpace.Pieces(response):
            body += chunk
            if len(body) > _MAX_ERROR_BODY:
                break
        error = error_of(response, bytes(body), self._target.about)
        if response.status_code in RETRY_STATUSES:
            raise _AgainError(error, response.headers.get("Retry-After"))
        raise error


class _AgainError(Exception):
    """An answer that may be different next time."""

    def __init__(self, error: PagepoolError, after: str | None) -> None:
        self.error = error
        self.after = after
        super().__init__(str(error))


class _Target:
    """Where to ask."""

    def __init__(self, name: str, tree: Digest | bytes, params: tuple[tuple[str, str], ...] = ()) -> None:
        self._params = params
        digest = Digest("blake3", tree) if isinstance(tree, bytes) else tree
        self.path = f"/v1/{name}/trees/{digest}/extents"
        self.about = Subject(TreeUnknownError, str(digest), name)
        self._scope = repository_scope(name)

    def call(self, body: bytes) -> Call:
        return Call(
            "POST",
            self.path,
            self.about,
            headers=self.headers(body),
            body=lambda: (body,),
            params=self._params,
            scope=self._scope,
        )

    def headers(self, body: bytes) -> dict[str, str]:
        return {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(body)),
            "Accept": MEDIA_TYPE,
        }


class _Errand:
    """One list of extents, over as many attempts as it takes. Does no I/O.

    For each attempt: `begin`, then `feed` with what comes, then `close`, or `broke` if something went wrong.
    `wait_s` then says how long to wait before the next, None if there is none to be made. At last `finish`.
    """

    def __init__(self, wanted: Sequence[bytes], retry: RetryPolicy, where: str) -> None:
        self.where = where
        self.wait_s: float | None = None
        self._left = dict.fromkeys(wanted)
        self._failed: dict[bytes, CorruptError] = {}
        self._retry = retry
        self._failures = 0
        self._progress = False
        self._decoder = StreamDecoder()
        self._records = self._most_records = 0

    @property
    def done(self) -> bool:
        """Whether nothing is to be asked for any more."""
        return not self._left

    def body(self) -> bytes:
        """The request's body."""
        return encode_wanted(list(self._left))

    def begin(self) -> None:
        self._decoder = StreamDecoder()
        self._records = 0
        self._most_records = _RECORDS_EACH * len(self._left)
        self._progress = False
        self.wait_s = None

    def feed(self, chunk: bytes) -> Iterator[Extent]:
        """The extents that a piece of an answer completes.

        Raises:
            CorruptError: the answer cannot be read any further.
        """
        for record in self._decoder.feed(chunk):
            self._records += 1
            if self._records > self._most_records and not isinstance(record, EndRecord):
                raise CorruptError("extents stream", "answer", f"{self.where} sends more than was asked for")
            if isinstance(record, Frame):
                yield from self._verified(record)
            elif isinstance(record, FailureRecord) and record.digest in self._left:
                what = "is damaged" if record.damaged else "is missing"
                self._fail(record.digest, f"{what} at {self.where}: {record.reason}")
            elif isinstance(record, EndRecord):
                for digest in list(self._left):
                    self._fail(digest, f"{self.where} sent neither it nor a reason")

    def close(self) -> None:
        """An answer has come to its end; CorruptError if that was too early."""
        self._decoder.close()

    def broke(self, error: PagepoolError, after: str | None = None) -> None:
        """An attempt went wrong; raises the error if it was the last."""
        self._failures = 1 if self._progress else self._failures + 1
        if self.done:  # what is missing is nothing but the end
            return
        if self._failures >= self._retry.attempts:
            raise error
        self.wait_s = self._retry.delay_s(self._failures, after)

    def finish(self) -> None:
        """Raise what is wrong with the first of those that could not be had."""
        for error in self._failed.values():
            raise error

    def _verified(self, frame: Frame) -> Iterator[Extent]:
        for digest, (offset, size) in frame.index.items():
            data = frame.view[offset : offset + size]
            got = blake3_raw(data)
            if got == digest:
                if digest in self._left:
                    del self._left[digest]
                    self._progress = True
                yield digest, data
            elif digest in self._left:
                self._fail(digest, f"{self.where} sent {got.hex()} ({size} bytes)")

    def _fail(self, digest: bytes, reason: str) -> None:
        del self._left[digest]
        self._progress = True
        self._failed[digest] = CorruptError("extent", digest.hex(), reason)


def _parts(wanted: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(wanted), MAX_WANTED):
        yield wanted[start : start + MAX_WANTED]


def _unreachable(error: httpx.HTTPError, where: str) -> UnreachableError:
    reason = "timed out" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
    return UnreachableError(where, reason)
