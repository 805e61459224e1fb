"""Exit codes: the one table from pagepool's errors to what the shell sees."""

from __future__ import annotations

from pagepool import errors

OK = 0
FAILURE = 1
USAGE = 2
NOT_FOUND = 3
INVALID = 4
CORRUPT = 5
UNREACHABLE = 6
DENIED = 7
FULL = 8
NOT_READY = 9
CONTAINER = 125
NOT_EXECUTABLE = 126
COMMAND_UNKNOWN = 127
INTERRUPTED = 130
BROKEN_PIPE = 141

CODES: dict[type[errors.PagepoolError], int] = {
    errors.InvalidError: INVALID,
    errors.LimitError: INVALID,
    errors.NotFoundError: NOT_FOUND,
    errors.DigestMismatchError: CORRUPT,
    errors.CorruptError: CORRUPT,
    errors.UnreachableError: UNREACHABLE,
    errors.UnauthorizedError: DENIED,
    errors.DeniedError: DENIED,
    errors.StoreFullError: FULL,
    errors.ReadOnlyError: FULL,
    errors.PendingError: NOT_READY,
    errors.BusyError: NOT_READY,
    errors.StoreFormatError: FAILURE,
    errors.UnsupportedError: FAILURE,
    errors.ResponseError: FAILURE,
    errors.ContainerError: CONTAINER,
    errors.CommandRefusedError: NOT_EXECUTABLE,
    errors.CommandUnknownError: COMMAND_UNKNOWN,
}
"""A class stands for its subclasses too, unless they have a line of their own."""

MEANINGS: dict[int, str] = {
    OK: "done",
    FAILURE: "any other failure",
    USAGE: "wrong usage",
    NOT_FOUND: "no such image, repository, blob or path",
    INVALID: "invalid input: a name, an image, a layout, a limit",
    CORRUPT: "corrupt: content does not have its digest",
    UNREACHABLE: "the server cannot be reached",
    DENIED: "no or wrong credentials, or not allowed",
    FULL: "the store is full or read-only",
    NOT_READY: "not ready yet, or in use: try again later",
    CONTAINER: "the container could not be run (pagepool run and exec: any failure but the program's own)",
    NOT_EXECUTABLE: "the container's command cannot be executed",
    COMMAND_UNKNOWN: "the container's command is not there",
    INTERRUPTED: "interrupted (Ctrl-C)",
    BROKEN_PIPE: "the reader of the output went away",
}


def exit_code(error: BaseException) -> int:
    """The exit code for an error: that of the nearest class in the table."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return FAILURE
