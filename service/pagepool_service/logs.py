"""How the service logs: one line for each event, on standard error, as text or as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from pagepool_service.logfields import fields_of
from pagepool_service.redaction import RedactingHandler
from pagepool_service.routes.streaming import BrokenOffError

if TYPE_CHECKING:
    from pagepool_service.settings import Settings


# Control characters, of whoever chose a name: none of them ends a line or moves a terminal's cursor.
_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class TextFormatter(logging.Formatter):
    """Time (UTC), level, logger, process, message, and the fields of `logfields`, ``name=value`` each."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s[%(process)d] %(message)s", "%Y-%m-%dT%H:%M:%S"
        )

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the base's name)
        """The line, before what follows of an exception."""
        # What the message of an access says already is not said again.
        left_out = getattr(record, "fields", {})
        fields = ((name, value) for name, value in fields_of(record).items() if name not in left_out)
        line = " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in fields)])
        return _printable(line)

    def formatException(self, ei: Any) -> str:  # noqa: N802  (the base's name)
        """Set in, line by line: what an exception says may have been chosen to look like a line of its own."""
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"    {_printable(line)}" for line in lines)


class JsonFormatter(logging.Formatter):
    """The same as a JSON object, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": os.getpid(),
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        return json.dumps({name: _sound(value) for name, value in fields.items()})


def _printable(line: str) -> str:
    return line.translate(_CONTROL).encode("utf-8", "backslashreplace").decode()


def _sound(value: object) -> object:
    """A value as every reader of JSON takes it: without lone surrogates, which names that are no UTF-8 turn into."""
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def configure(settings: Settings) -> None:
    """Set the process's logging up."""
    handler = RedactingHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # The server tells of its own coming and going, which the supervisor does for all workers at once.
    logging.getLogger("uvicorn.error").setLevel(max(root.level, logging.WARNING))
    logging.captureWarnings(True)
    for noisy in ("asyncio", "multipart"):
        logging.getLogger(noisy).setLevel(max(root.level, logging.WARNING))


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out what was logged where it happened, and what is usual.

    A body that broke off is raised on to close its connection; a request that is cut off at the end was. Clients that
    do not know yet whether the service speaks TLS try it first.
    """
    error = record.exc_info[1] if record.exc_info else None
    if record.msg == "Invalid HTTP request received.":
        return logging.getLogger().level <= logging.DEBUG
    return not isinstance(error, (BrokenOffError, asyncio.CancelledError))
