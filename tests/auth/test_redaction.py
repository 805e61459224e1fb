"""What looks like a credential is not logged; what does not, is."""

from __future__ import annotations

import io
import json
import logging
import time

import pytest

from pagepool_service.logs import JsonFormatter, TextFormatter
from pagepool_service.redaction import HIDDEN, RedactingHandler, redact

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
STATIC = "pp_" + "Ab-_0" * 8 + "xyz"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Basic YWxpY2U6cHc=", "YWxpY2U6cHc="),
        (f"authorization: bearer {JWT}", JWT),
        ("GET /auth/token?account=a&password=hunter2&scope=x HTTP/1.1", "hunter2"),
        (f"GET /v2/?access_token={STATIC}", STATIC),
        ('{"username": "a", "password": "hunter2"}', "hunter2"),
        (r"{\"password\": \"hunter2\"}", "hunter2"),
        ("{'password': b'hunter2'}", "hunter2"),
        ("refresh_token=hunter2", "hunter2"),
        ("connecting to https://alice:hunter2@registry.example/v2/", "hunter2"),
        (f"the token {JWT} has expired", JWT),
        (f"login({STATIC!r})", STATIC),
        (f"GET /a.long-name.of-something/x-{JWT}?n=1 HTTP/1.1", JWT),
        (f"{'-eyJ' * 100}.{JWT}", JWT),
    ],
)
def test_secrets_are_hidden(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in redact(text)
    assert HIDDEN in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "serving on https://127.0.0.1:5000 data /var/lib/pagepool workers 2",
        '127.0.0.1:1 - "GET /auth/token?service=pagepool&scope=repository:a:pull HTTP/1.1" 200',
        "layer sha256:0f3 ready: diff_id sha256:0f4, 351 members",
        "alice may not push in team/app",
        "file /etc/pagepool/tokens.toml: token 'ci' has no sha256",
    ],
)
def test_the_rest_is_not(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("part", ["-eyJ", "-eyJ-eyJ-eyJ.", "://a:", "password", "bearer+", "pp_", "eyJ.", "Basic "])
def test_long_lines_take_no_longer(part: str) -> None:
    """A stranger's path is as long as a head may be, and is redacted in the event loop."""
    text = part * ((512 << 10) // len(part))
    began_s = time.thread_time()
    redact(text)
    assert time.thread_time() - began_s < 2


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_tracebacks_too(formatter: logging.Formatter) -> None:
    out = io.StringIO()
    handler = RedactingHandler(out)
    handler.setFormatter(formatter)
    log = logging.getLogger("tests.redaction")
    log.propagate = False
    log.addHandler(handler)
    try:
        raise ValueError(f"cannot use Bearer {JWT} of https://a:hunter2@host/")
    except ValueError:
        log.exception("login failed with %s", {"password": "hunter2"})
    finally:
        log.removeHandler(handler)
    assert "ValueError" in out.getvalue()
    assert "hunter2" not in out.getvalue()
    assert JWT not in out.getvalue()
    if isinstance(formatter, JsonFormatter):
        assert json.loads(out.getvalue())["level"] == "error"
