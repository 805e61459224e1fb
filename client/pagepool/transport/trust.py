"""Which authorities vouch for servers: the system's, and others that were named.

`Verify` is what everything that connects takes: True for the system's authorities (and those of ``SSL_CERT_FILE`` and
``SSL_CERT_DIR``), False for no check, a text for further ones: paths of PEM files, one a line; it can be
written down, and handed to another process. Or a context of the caller's own making.
"""

from __future__ import annotations

import ssl
import time
from functools import lru_cache

import httpx

from pagepool.errors import InvalidError

Verify = bool | str | ssl.SSLContext
_TRUSTED_S = 3600.0
_STRICT = ("Authority Key Identifier", "Subject Key Identifier", "key usage", "Basic Constraints")
"""Of what is missing in certificates that others take: docker, curl, Python before 3.13."""


class AuthorityInvalidError(InvalidError):
    """A file of certificates that cannot be used."""

    what = "certificate of an authority"


def context_of(verify: Verify) -> bool | ssl.SSLContext:
    """What to check a server's certificate with.

    Raises:
        AuthorityInvalidError: a file of a text cannot be used; names it.
    """
    if verify is True:
        return _system(int(time.monotonic() // _TRUSTED_S))
    return _with(verify) if isinstance(verify, str) else verify


def explain(words: str) -> str:
    """What went wrong with a server's certificate, or its lack of one, and what to do; other words as they are."""
    if "CERTIFICATE_VERIFY_FAILED" in words:
        reason = words.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or "it cannot be verified"
        if "self-signed" in reason or "self signed" in reason or "local issuer" in reason:
            reason += "; if it is the right one, name the authority that signed it: --ca-certificate or SSL_CERT_FILE"
        elif any(words in reason for words in _STRICT):
            reason += "; from version 3.13 on Python wants what RFC 5280 says of certificates: issue it with that"
        return f"its certificate is refused: {reason}"
    if "WRONG_VERSION_NUMBER" in words or "wrong version number" in words:
        return "it does not speak TLS; http:// or --plain-http would reach it, unencrypted"
    return words


def _with(paths: str) -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    for path in filter(None, paths.splitlines()):
        try:
            context.load_verify_locations(path)
        except ssl.SSLError:
            raise AuthorityInvalidError(path, "is no PEM file of certificates") from None
        except OSError as error:
            raise AuthorityInvalidError(path, error.strerror or str(error)) from None
    return context


@lru_cache(maxsize=1)
def _system(hour: int) -> ssl.SSLContext:  # noqa: ARG001 - so that new authorities are seen
    """The authorities this machine trusts. Reading them takes longer than all else that a session needs to begin."""
    return httpx.create_ssl_context()
