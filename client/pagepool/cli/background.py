"""Goes on in the background: a command's work in a process that nobody waits for, once it says that it is under way."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from pagepool.cli import exits
from pagepool.errors import CommandRefusedError, CommandUnknownError, ContainerError, PagepoolError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Work = Callable[[Callable[[dict[str, Any]], None]], int]

_ERRORS = {exits.NOT_EXECUTABLE: CommandRefusedError, exits.COMMAND_UNKNOWN: CommandUnknownError}


def in_background(work: Work, log: Path | None) -> dict[str, Any]:
    """Do work in a process of its own, whose output goes to a log.

    Args:
        work: is given a function to call with what is to be told, once it is under way. Called in a process that
            only the caller's own thread lives on in.
        log: appended to; None: the output is thrown away.

    Returns:
        what was told.

    Raises:
        ContainerError: it ended before, with that reason.
        OSError: the log cannot be written.
    """
    output = os.open(os.devnull if log is None else log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _detach(output)
        _work(work, writing)
    os.close(writing)
    os.close(output)
    with os.fdopen(reading, "rb") as answers:
        told = answers.read()
    os.waitpid(child, 0)
    answer: dict[str, Any] = json.loads(told) if told else {"error": "its process ended and said nothing", "code": 125}
    if "error" in answer:
        raise _ERRORS.get(answer["code"], ContainerError)(answer["error"])
    return answer


def _detach(output: int) -> None:
    """Belong to nobody's session, terminal or directory."""
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


def _work(work: Work, writing: int) -> NoReturn:
    """Work, tell how that goes, and end, whatever happens."""
    told = False

    def tell(answer: dict[str, Any]) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(writing, json.dumps(answer).encode())
            os.close(writing)

    code = exits.FAILURE
    try:
        code = work(tell)
        tell({"error": f"it ended at once, with exit code {code}", "code": exits.CONTAINER})
    except (PagepoolError, OSError) as error:
        code = exits.exit_code(error) if isinstance(error, ContainerError) else exits.CONTAINER
        with contextlib.suppress(OSError):
            tell({"error": str(error), "code": code})
            print(f"pagepool: error: {error}", file=sys.stderr)
    except BaseException:  # noqa: BLE001 - shown where all else is shown; raised, it would go on as the command
        sys.excepthook(*sys.exc_info())
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
