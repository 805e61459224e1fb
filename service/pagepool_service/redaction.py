"""Keeps secrets out of what is logged, whoever logs it: the last thing that happens to a line.

Nothing of ours logs a header or a form; but a client may put a token into a query, which the access log has, and an
exception may carry what it was about. What looks like a credential is replaced, in text and JSON lines, tracebacks
included: values of Authorization headers, of parameters and fields that are called so, user and password in addresses,
static tokens, and anything that has the form of a signed token.
"""

from __future__ import annotations

import logging
import re
from itertools import pairwise

HIDDEN = "[hidden]"
_NAMES = "access_token|refresh_token|id_token|identitytoken|identity_token|client_secret|password|passwd|secret"
_SECRETS = (
    (re.compile(r"(?i)\b(basic|bearer)(\s+|%20|\+)[A-Za-z0-9._~+/=%-]{3,}"), rf"\1\2{HIDDEN}"),
    (re.compile(rf"""(?i)(?<![a-z])({_NAMES})(\\?["']?\s*[=:]\s*b?\\?["']?)[^\s&"'\\,;)}}]+"""), rf"\1\2{HIDDEN}"),
    (re.compile(r"(?i)(://)[^\s/@:]+:[^\s/@]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"\bpp_[A-Za-z0-9_-]{43}"), HIDDEN),
)
# A signed token is three runs with dots between. Looked for in one pass: an expression for all of it would follow each
# "-eyJ" of a long line to its end, which takes seconds of the event loop.
_DOTTED = re.compile(r"[A-Za-z0-9_.-]{14,}")
_SIGNED = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}")


def redact(text: str) -> str:
    """The text without what looks like a credential."""
    for expression, replacement in _SECRETS:
        text = expression.sub(replacement, text)
    return _DOTTED.sub(_hide_signed, text) if "eyJ" in text else text


def _hide_signed(match: re.Match[str]) -> str:
    """The text, up to where a signed token begins."""
    parts = match[0].split(".")
    before = 0
    for part, following in pairwise(parts[:-1]):
        found = _SIGNED.search(part)
        if found is not None and following:
            return match[0][: before + found.start()] + HIDDEN
        before += len(part) + 1
    return match[0]


class RedactingHandler(logging.StreamHandler):  # type: ignore[type-arg]  # it is generic to mypy only
    """Writes lines without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, as the formatter has it, redacted."""
        return redact(super().format(record))
