"""References: how people name images, and the grammar of repository names and tags.

    [host[:port]/]repository[:tag][@digest]

Repository names and tags follow distribution-spec v1.1.0, "Pulling manifests", exactly. The host part follows
Docker: the text before the first slash is a host if it has a dot, a colon or a capital letter, or is
``localhost``. Unlike Docker, a reference without a host stays without one; no registry and no ``library/``
are made up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pagepool.digest import Digest
from pagepool.errors import InvalidError, NameInvalidError, ReferenceInvalidError, TagInvalidError

DEFAULT_TAG = "latest"
MAX_NAME = 255
"""Most characters in host, slash and repository together: the limit that other clients have."""

# Every repetition begins with a character that the part before it cannot hold, so no input makes these
# backtrack.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
SCHEMES = {"http", "https", "docker", "pagepool"}
"""What people write before a reference who know URLs, or skopeo."""
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*\.?|\[[a-fA-F0-9:.]+\])(?::(?P<port>[0-9]{{1,5}}))?")


def validate_repository(name: str) -> str:
    """Check a repository name and return it.

    Raises:
        NameInvalidError: outside the grammar, or longer than any client could name.
    """
    if len(name) > MAX_NAME:
        raise NameInvalidError(name[:64] + "…", f"has {len(name)} characters; the limit is {MAX_NAME}")
    if not _REPOSITORY.fullmatch(name):
        raise NameInvalidError(name, "must be lower-case letters, digits, and single separators out of . _ __ - /")
    return name


def validate_tag(tag: str) -> str:
    """Check a tag and return it.

    Raises:
        TagInvalidError: outside the grammar.
    """
    if not _TAG.fullmatch(tag):
        shown = tag if len(tag) <= 64 else tag[:64] + "…"
        raise TagInvalidError(shown, "must be 1 to 128 letters, digits, or _ . - and not begin with . or -")
    return tag


@dataclass(frozen=True, slots=True)
class Reference:
    """The name of an image, or of a repository.

    Args:
        repository: repository name.
        tag: tag, or None.
        digest: digest of the manifest, or None. It decides, if a tag is given too.
        host: host, with a port if one was given; None: the caller's default server.
    """

    repository: str
    tag: str | None = None
    digest: Digest | None = None
    host: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a reference.

        Raises:
            ReferenceInvalidError: it says which part is bad.
        """
        try:
            return _parse(text)
        except ReferenceInvalidError:
            raise
        except InvalidError as bad:
            reason = bad.reason or f"{bad.value} is no sha256:… or sha512:… with all its hex digits"
            raise ReferenceInvalidError(text[:512], f"{bad.what}: {reason}") from None

    @property
    def target(self) -> str:
        """What to ask the repository for: the digest, or else the tag, or else ``latest``."""
        return str(self.digest) if self.digest else self.tag or DEFAULT_TAG

    def with_digest(self, digest: Digest) -> Reference:
        """The same repository by digest, without the tag."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        text = f"{self.host}/{self.repository}" if self.host else self.repository
        if self.tag:
            text += f":{self.tag}"
        return f"{text}@{self.digest}" if self.digest else text


def _parse(text: str) -> Reference:
    scheme, found, _ = text.partition("://")
    if found and scheme in SCHEMES:
        raise ReferenceInvalidError(
            text[:512], f"a reference has no scheme: leave {scheme}:// out; a server's address has one"
        )
    if text.startswith(("/", "./", "../")):
        raise ReferenceInvalidError(text[:512], "a path stands where an image in a registry is named: HOST/NAME:TAG")
    rest, at, digest_text = text.partition("@")
    digest = Digest.parse(digest_text) if at else None
    host, rest = _split_host(rest)
    repository, colon, tag = rest.partition(":")
    reference = Reference(
        repository=validate_repository(repository),
        tag=validate_tag(tag) if colon else None,
        digest=digest,
        host=host,
    )
    if host and len(host) + 1 + len(repository) > MAX_NAME:
        raise ReferenceInvalidError(text[:64] + "…", f"host and repository have more than {MAX_NAME} characters")
    return reference


def _split_host(text: str) -> tuple[str | None, str]:
    first, slash, rest = text.partition("/")
    if not slash or not (set(".:") & set(first) or first == "localhost" or first != first.lower()):
        return None, text
    if not rest:
        raise ReferenceInvalidError(text[:512], f"{first[:64]!r} is a host, and no name follows it")
    match = _HOST.fullmatch(first)
    if not match:
        raise ReferenceInvalidError(text[:512], f"{first[:64]!r} is not a host")
    if match["port"] and not 0 < int(match["port"]) < 65536:
        raise ReferenceInvalidError(text[:512], f"{match['port']} is not a port")
    return first, rest
