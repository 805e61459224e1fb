"""How the service logs: one line for each event, on standard error, as text or as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from typing import TYPE_CHECKING

from pagepool_service import requestids
from pagepool_service.redaction import RedactingHandler
from pagepool_service.routes.streaming import BrokenOffError

if TYPE_CHECKING:
    from pagepool_service.settings import Settings

_PROBES = ("/healthz", "/readyz")


class TextFormatter(logging.Formatter):
    """Time (UTC), level, logger, process, message, and the id of the request if there is one."""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s[%(process)d] %(message)s", "%Y-%m-%dT%H:%M:%S"
        )

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the base's name)
        """The line, before what follows of an exception."""
        line = super().formatMessage(record)
        request = requestids.current.get()
        return f"{line} request_id={request}" if request else line


class JsonFormatter(logging.Formatter):
    """The same as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": os.getpid(),
            "message": record.getMessage(),
        }
        if request := requestids.current.get():
            fields["request_id"] = request
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


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
    logging.getLogger("uvicorn.access").setLevel(logging.INFO if settings.access_log else logging.CRITICAL)
    for noisy in ("asyncio", "multipart"):
        logging.getLogger(noisy).setLevel(max(root.level, logging.WARNING))


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out what was logged where it happened, and what is usual.

    A body that broke off is raised on to close its connection; a request that is cut off at the end was. Clients that
    do not know yet whether the service speaks TLS try it first. Probes that find all well come every few seconds.
    """
    error = record.exc_info[1] if record.exc_info else None
    if record.msg == "Invalid HTTP request received." or _is_probe(record):
        return logging.getLogger().level <= logging.DEBUG
    return not isinstance(error, (BrokenOffError, asyncio.CancelledError))


def _is_probe(record: logging.LogRecord) -> bool:
    """Whether this is the server's line on a probe that was answered with 200."""
    if record.name != "uvicorn.access" or not isinstance(record.args, tuple):
        return False
    return len(record.args) == 5 and record.args[2] in _PROBES and record.args[4] == 200
