"""TLS: one context for each worker, whose certificate is replaced while it serves.

A renewed certificate is taken up by connections that begin after it was noticed, which takes seconds; those that are
open go on. Files that do not fit together, as while they are being replaced one after the other, are left alone until
they do: what was loaded before stays in force. TLS 1.2 and newer.

The context that listens is never loaded again: whoever connects between its new certificate and its new key would be
refused. Each handshake is handed to the newest one instead.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING

from pagepool_service.settings import SettingInvalidError

if TYPE_CHECKING:
    from pathlib import Path

    from pagepool_service.settings import Settings

log = logging.getLogger("pagepool.tls")


class Certificate:
    """A certificate and its key, in files that are looked at again and again.

    Args:
        certificate: PEM, the chain included.
        key: PEM, without a password; None if it is in the same file.

    Raises:
        SettingInvalidError: they cannot be used; says which and why.
    """

    def __init__(self, certificate: Path, key: Path | None) -> None:
        self._certificate, self._key = certificate, key
        self._seen = self._look()
        self.context = self._newest = self._make()
        self.context.sni_callback = self._hand_on

    @classmethod
    def of(cls, settings: Settings) -> Certificate | None:
        """That of a service; None if it serves without TLS.

        Raises:
            SettingInvalidError: it cannot be used.
        """
        if settings.tls_certificate is None:
            return None
        return cls(settings.tls_certificate, settings.tls_key)

    def refresh(self) -> None:
        """Load the files again if they have changed. Blocks for milliseconds; any thread may call it."""
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._newest = self._make()
        except (SettingInvalidError, OSError, ValueError) as error:
            log.error("%s; connections go on with the certificate from before", error)
            return
        log.info("the certificate %s was loaded again", self._certificate)

    def _hand_on(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called at the beginning of each, whether a name is asked for or not."""
        handshake.context = self._newest

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        for path in (self._certificate, self._key):
            try:
                if path is not None:
                    path.open("rb").close()
            except OSError as error:
                raise SettingInvalidError(str(path), f"cannot be read: {error.strerror}") from None
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except ssl.SSLError as error:
            raise SettingInvalidError(str(self._certificate), self._explain(error)) from None
        except (OSError, ValueError) as error:
            raise SettingInvalidError(str(self._certificate), str(error)) from None
        return context

    def _explain(self, error: ssl.SSLError) -> str:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"is not the certificate of the key {self._key or self._certificate}"
        where = "it" if self._key is None else f"it, or {self._key},"
        return f"cannot be loaded: {where} has no PEM certificate and key in it ({error.reason or error})"

    def _look(self) -> object:
        found: list[object] = []
        for path in (self._certificate, self._key):
            try:
                status = None if path is None else path.stat()
            except OSError:
                status = None
            found.append(None if status is None else (status.st_mtime_ns, status.st_ino, status.st_size))
        return found


def _no_password() -> str:
    # Else OpenSSL would ask on the terminal, and wait.
    raise ValueError("the key has a password: store it without one, readable to the service alone")
