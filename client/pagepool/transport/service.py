"""A client for what pagepool's own service adds to a registry: the routes under /v1.

Answers are parsed into frozen values, strictly where pagepool uses a field; each keeps the service's JSON in
`raw`, so that what a newer service says more is not lost on its way to a user. Thread-safe; everything
blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

import httpx

from pagepool.errors import (
    ManifestUnknownError,
    NameUnknownError,
    NotFoundError,
    PagepoolError,
    PathUnknownError,
    PendingError,
    ResponseError,
)
from pagepool.oci.fields import MAX_SIZE, Object, load_object
from pagepool.transport.answers import Subject
from pagepool.transport.auth import CATALOG_SCOPE, repository_scope
from pagepool.transport.http import Call, Session
from pagepool.transport.paging import next_link
from pagepool.transport.retry import parse_retry_after

PENDING, READY, UNMOUNTABLE = "pending", "ready", "unmountable"
# A tar's times are seconds of 64 bits.
_MOST_NS = (1 << 63) * 10**9
_FIRST_POLL_S, _LAST_POLL_S = 0.05, 2.0


@dataclass(frozen=True, slots=True)
class LayerState:
    """One layer of an image, as the service understands it.

    Args:
        digest: of the blob.
        media_type: as the manifest says.
        size: of the blob, in bytes.
        diff_id: digest of the plain layer; "" while not known.
        state: ``pending``, ``ready``, or ``unmountable``.
        reason: why it is unmountable; else "".
        plain_size: bytes of the plain layer; None while not known.
        members: number of entries in it; None while not known.
    """

    digest: str
    media_type: str
    size: int
    diff_id: str
    state: str
    reason: str
    plain_size: int | None
    members: int | None


@dataclass(frozen=True, slots=True)
class ImageState:
    """An image, resolved by the service.

    Args:
        name: repository.
        reference: what was asked for.
        digest: of the image's manifest.
        media_type: of the manifest.
        size: of the manifest, in bytes.
        platform: ``os/architecture[/variant]``; "" if not known.
        state: ``pending``, ``ready``, or ``unmountable``.
        reason: why it is unmountable; else "".
        layers: lowest first.
        raw: the answer.
    """

    name: str
    reference: str
    digest: str
    media_type: str
    size: int
    platform: str
    state: str
    reason: str
    layers: tuple[LayerState, ...]
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Digests of the layers still being read."""
        return tuple(layer.digest for layer in self.layers if layer.state == PENDING)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file in an image. Fields as in `ls -l`; `object` is the BLAKE3 name of a regular file's content."""

    path: str
    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    linkname: str
    nlink: int
    object: str
    raw: Mapping[str, Any] = field(repr=False, compare=False)


class ServiceClient:
    """The operations of pagepool's service. The caller closes the session.

    Args:
        session: the service; may be shared with a RegistryClient.
        clock: seconds that only go forward; tests replace it.
    """

    def __init__(self, session: Session, clock: Callable[[], float] = time.monotonic) -> None:
        self._session = session
        self._clock = clock

    def available(self) -> bool:
        """Tell whether the server is pagepool's service, rather than some other registry."""
        call = Call("GET", "/v1/images", Subject(NameUnknownError, "images"), params=(("n", "1"),), scope=CATALOG_SCOPE)
        try:
            answer = self._object(self._session.request(call))
        except (NotFoundError, ResponseError):
            return False
        return isinstance(answer.fields.get("images"), list)

    def image(self, name: str, reference: str) -> ImageState:
        """Resolve an image, ready or not.

        Raises:
            ManifestUnknownError: there is none.
        """
        return self._image(self._session.request(_image_call(name, reference)))

    def wait(
        self,
        name: str,
        reference: str,
        timeout_s: float | None = None,
        on_state: Callable[[ImageState], None] = lambda _: None,
    ) -> ImageState:
        """Wait until the service has read all layers of an image.

        Args:
            name: repository.
            reference: tag or digest.
            timeout_s: the longest wait; None: without limit.
            on_state: told of each answer.

        Returns:
            The image, ready or unmountable.

        Raises:
            PendingError: it took longer than `timeout_s`.
        """
        begin, pause = self._clock(), _FIRST_POLL_S
        while True:
            response = self._session.request(_image_call(name, reference))
            image = self._image(response)
            on_state(image)
            if image.state != PENDING:
                return image
            left = None if timeout_s is None else timeout_s - (self._clock() - begin)
            if left is not None and left <= 0:
                raise PendingError(f"{name}:{reference}", image.waiting)
            # The header counts whole seconds, and most layers are read in less: it is heeded once one has passed.
            waited_s = self._clock() - begin
            asked = min(parse_retry_after(response.headers.get("Retry-After")), _LAST_POLL_S) if waited_s > 1 else 0.0
            wait_s = max(pause, asked)
            self._session.retry.sleep(wait_s if left is None else min(wait_s, left))
            pause = min(pause * 1.5, _LAST_POLL_S)

    def images(self) -> Iterator[Mapping[str, Any]]:
        """All tagged images: name, tag, digest, media_type, size, platform, created, state.

        The state ``damaged`` is that of an image which the service cannot read, with the ``reason``.
        """
        yield from self._list("/v1/images", Subject(NameUnknownError, "images"), (), "images", _after_image)

    def files(self, name: str, reference: str, path: str, recursive: bool = False) -> Iterator[FileEntry]:
        """List a directory of an image, or name one file.

        Args:
            name: repository.
            reference: tag or digest.
            path: absolute path inside the image.
            recursive: everything below, too.

        Raises:
            PathUnknownError: no such path.
            ManifestUnknownError: no such image.
            PendingError: its layers are still being read.
        """
        params = (("path", path), ("recursive", "true" if recursive else "false"))
        url = f"{image_url(name, reference)}/files"
        about = Subject(PathUnknownError, path, name, _image_name(name, reference))
        for entry in self._list(url, about, params, "entries", _after_entry):
            yield _file_entry(Object(entry, "entries", answer_error))

    def stats(self) -> Mapping[str, Any]:
        """Sizes, as the service counts them: ``total``, and ``images`` one by one."""
        call = Call("GET", "/v1/stats", Subject(NameUnknownError, "statistics"), scope=CATALOG_SCOPE)
        return self._object(self._session.request(call)).fields

    def cache(self) -> Mapping[str, Any]:
        """What the service's pool holds.

        Raises:
            UnsupportedError: it has none.
        """
        call = Call("GET", "/v1/cache", Subject(NameUnknownError, "cache"), scope=CATALOG_SCOPE)
        return self._object(self._session.request(call)).fields

    def _image(self, response: httpx.Response) -> ImageState:
        fields = self._object(response)
        return ImageState(
            name=fields.string("name"),
            reference=fields.string("reference"),
            digest=fields.string("digest"),
            media_type=fields.optional_string("media_type"),
            size=fields.integer("size"),
            platform=platform_text(fields.fields.get("platform")),
            state=fields.optional_string("state") or (PENDING if response.status_code == 202 else READY),
            reason=fields.optional_string("reason"),
            layers=tuple(_layer_state(layer) for layer in fields.objects("layers")),
            raw=fields.fields,
        )

    def _list(
        self,
        url: str,
        about: Subject,
        params: tuple[tuple[str, str], ...],
        name: str,
        after: Callable[[Object], tuple[str, str] | None],
    ) -> Iterator[Mapping[str, Any]]:
        """Go through a list page by page: by ``Link``, or by what the page itself says comes next."""
        scope = repository_scope(about.repository) if about.repository else CATALOG_SCOPE
        call = Call("GET", url, about, expect=(200, 202), params=params, scope=scope)
        seen: set[str] = set()
        while True:
            response = self._session.request(call)
            page = self._object(response)
            if response.status_code == 202:
                raise PendingError(about.image or about.name, page.strings("waiting"))
            for item in page.objects(name):
                yield item.fields
            link, following = next_link(response), after(page)
            if link is not None:
                target = self._session.resolve(response, link)
                call = replace(call, url=target, params=())
                mark = str(target)
            elif following is not None:
                call = replace(call, url=url, params=(*params, following))
                mark = following[1]
            else:
                return
            if mark in seen:
                raise ResponseError(200, "", f"its list of {name} goes round in a circle")
            seen.add(mark)

    def _object(self, response: httpx.Response) -> Object:
        return load_object(response.content, "answer", answer_error)


def platform_text(value: object) -> str:
    """A platform as people write it, from the service's JSON: text already, or an object."""
    if isinstance(value, dict):
        parts = (value.get("os"), value.get("architecture"), value.get("variant"))
        return "/".join(str(part) for part in parts if part)
    return value if isinstance(value, str) else ""


def answer_error(path: str, reason: str) -> PagepoolError:
    """The error for an answer of the service that cannot be used."""
    return ResponseError(200, "", f"its answer cannot be used: {path} {reason}")


def image_url(name: str, reference: str) -> str:
    """Where an image is on the service."""
    return f"/v1/{name}/images/{quote(reference, safe=':')}"


def _image_name(name: str, reference: str) -> str:
    return f"{name}{'@' if ':' in reference else ':'}{reference}"


def _image_call(name: str, reference: str) -> Call:
    about = Subject(ManifestUnknownError, _image_name(name, reference), name)
    return Call("GET", image_url(name, reference), about, expect=(200, 202), scope=repository_scope(name))


def _after_image(page: Object) -> tuple[str, str] | None:
    return ("last", page.string("next")) if page.has("next") else None


def _after_entry(page: Object) -> tuple[str, str] | None:
    return ("after", page.string("next")) if page.has("next") else None


def _layer_state(fields: Object) -> LayerState:
    return LayerState(
        digest=fields.string("digest"),
        media_type=fields.optional_string("media_type"),
        size=fields.integer("size"),
        diff_id=fields.optional_string("diff_id"),
        state=fields.optional_string("state"),
        reason=fields.optional_string("reason"),
        plain_size=fields.integer("plain_size") if fields.has("plain_size") else None,
        members=fields.integer("members") if fields.has("members") else None,
    )


def _file_entry(fields: Object) -> FileEntry:
    def number(name: str, default: int = 0, low: int = 0, high: int = MAX_SIZE) -> int:
        return fields.integer(name, low, high) if fields.has(name) else default

    return FileEntry(
        path=fields.string("path"),
        type=fields.string("type"),
        mode=number("mode"),
        uid=number("uid"),
        gid=number("gid"),
        size=number("size"),
        mtime_ns=number("mtime_ns", low=-_MOST_NS, high=_MOST_NS),
        linkname=fields.optional_string("linkname"),
        nlink=number("nlink", 1),
        object=fields.optional_string("object"),
        raw=fields.fields,
    )
