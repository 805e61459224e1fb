"""How commands and the node speak with each other: JSON lines over a Unix socket, descriptors beside them.

A connection is one conversation. The client sends a request ``{"op": …}``; the node answers with any number of lines
``{"progress": bytes}`` and one ``{"ok": …}`` or ``{"error": {"class": …, "message": …}}``. A descriptor travels with
the line that speaks of it (SCM_RIGHTS). Who may connect may do everything: the socket lies in a directory of root's.

Errors keep their class over the socket as far as pagepool has it: see `encode_error`.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pagepool import errors
from pagepool.errors import PagepoolError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LIMIT: Final = 64 << 20
"""Bytes of a message. An image's configuration is in one, and may take six times its size in JSON."""
_CHUNK: Final = 64 << 10
_MOST_DEATHS: Final = 4
"""Of workers during one conversation, which is then had with the next one."""

_Told = TypeVar("_Told")


class NodeGoneError(UnreachableError):
    """The node itself does not answer, or has ended in the middle. What it says of others is no such error."""


class Channel:
    """One end of a conversation. Not thread-safe; close it.

    Args:
        connection: a connected Unix stream socket; belongs to this object.
        takes: so many descriptors are taken with a piece of a message; the kernel drops others that come with it.
    """

    def __init__(self, connection: socket.socket, takes: int = 0) -> None:
        self._socket = connection
        self._takes = takes
        self._received = bytearray()
        self.descriptors: list[int] = []
        """What came with the lines so far, and was not taken."""

    def send(self, message: Mapping[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        """Send a line, and descriptors with it; they stay open here.

        Raises:
            OSError: the other end is gone.
        """
        data = json.dumps(message).encode() + b"\n"
        if descriptors:
            sent = socket.send_fds(self._socket, [data], list(descriptors))
            data = data[sent:]
        self._socket.sendall(data)

    def receive(self) -> dict[str, Any] | None:
        """The next line; None when the other end has gone. Blocks.

        Raises:
            ValueError: it is no JSON object, or too long.
            OSError: the connection broke.
        """
        looked = 0
        while (end := self._received.find(b"\n", looked)) < 0:
            looked = len(self._received)
            if len(self._received) > _LIMIT:
                raise ValueError("a message is too long")
            data, descriptors, _, _ = socket.recv_fds(self._socket, _CHUNK, self._takes)
            self.descriptors += descriptors
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
            if not data:
                return None
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        try:
            message = json.loads(line)
        except RecursionError as error:
            raise ValueError("a message is nested too deeply") from error
        if not isinstance(message, dict):
            raise ValueError("a message is no object")
        return message

    def close(self) -> None:
        """End the conversation."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()
        self._socket.close()


def encode_error(error: Exception) -> dict[str, Any]:
    """An error as it goes over the socket."""
    found: dict[str, Any] = {"class": type(error).__name__, "message": str(error)}
    if isinstance(error, OSError):
        found |= {"class": "OSError", "errno": error.errno, "message": error.strerror or str(error)}
        found |= {"filename": os.fsdecode(error.filename)} if error.filename is not None else {}
    return found


def decode_error(found: Mapping[str, Any]) -> Exception:
    """An error that came over the socket: of the class that it was, with the words that it had."""
    message, name = str(found.get("message", "")), str(found.get("class", ""))
    if name == "OSError":
        number = found.get("errno")
        if not isinstance(number, int):
            return OSError(message)
        return OSError(number, message, *([found["filename"]] if "filename" in found else []))
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, PagepoolError)):
        kind = PagepoolError
    # Their initialisers take what the message was made of, which is here as a whole already.
    error = kind.__new__(kind)
    error.args = (message,)
    return error


def converse(
    path: os.PathLike[str],
    request: Mapping[str, Any],
    on_bytes: Callable[[int], object] = lambda _: None,
    take: Callable[[Channel, dict[str, Any]], None] | None = None,
) -> Any:
    """Have one conversation with the node.

    Args:
        path: of its socket.
        request: what is asked for.
        on_bytes: told of progress, in bytes.
        take: called with lines that are neither progress nor the end.

    Returns:
        what it answered.

    Raises:
        NodeGoneError: nobody answers there, or the node ended in the middle: it may have done what was asked.
        PagepoolError, OSError: what it says went wrong.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        raise NodeGoneError(os.fspath(path), error.strerror or "no node") from error
    channel = Channel(connection, takes=1)
    try:
        with suppress(ConnectionError):  # a node without threads has answered before it was asked, and is gone
            channel.send(request)
        while (answer := channel.receive()) is not None:
            if "progress" in answer:
                on_bytes(int(answer["progress"]))
            elif "ok" in answer:
                return answer["ok"]
            elif "error" in answer:
                raise decode_error(answer["error"])
            elif take is not None:
                take(channel, answer)
    except ConnectionError as error:
        raise NodeGoneError(os.fspath(path), error.strerror or "the node ended") from error
    finally:
        channel.close()
    raise NodeGoneError(os.fspath(path), "the node ended in the middle")


def ask(path: os.PathLike[str], operation: str, **fields: object) -> Any:
    """Have a conversation that can be had again: if the worker dies just then, with the next one, a few times.

    Args:
        path: of the node's socket.
        operation: what is asked for.
        fields: of the request.

    Returns:
        what it answered.

    Raises:
        NodeGoneError: nobody answers there.
        PagepoolError, OSError: what it says went wrong.
    """
    return have_again(lambda: converse(path, {"op": operation, **fields}))


def have_again(converse: Callable[[], _Told], is_there: Callable[[], bool] = lambda: True) -> _Told:
    """Have a conversation, again with the next worker each time that the one dies with which it was begun.

    Args:
        converse: has it.
        is_there: whether there is a node to have it with again.

    Raises:
        NodeGoneError: there is none, or its workers die one after the other.
    """
    for _ in range(_MOST_DEATHS):
        try:
            return converse()
        except NodeGoneError:
            if not is_there():
                raise
    return converse()
