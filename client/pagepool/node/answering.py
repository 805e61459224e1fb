"""The node's end of conversations (`control`): takes them, has the operation done, and sends how that ended."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from pagepool import errors
from pagepool.errors import PagepoolError
from pagepool.linux.descriptors import is_passing
from pagepool.node.control import Channel, encode_error

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

_AGAIN_S: Final = 0.1

log = logging.getLogger("pagepool.node")


class ControlServer:
    """Answers conversations, each in a thread of its own.

    Args:
        listener: a listening Unix socket. Other processes may have it open, too.
        handlers: by the name of the operation: called with the channel and the request, returns what is sent as ``ok``.
    """

    def __init__(
        self, listener: socket.socket, handlers: Mapping[str, Callable[[Channel, dict[str, Any]], Any]]
    ) -> None:
        self._listener = listener
        self._handlers = handlers
        self._thread = threading.Thread(target=self._accept, name="node-control", daemon=True)
        self._retired = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def retire(self) -> None:
        """Take no more conversations, before what operations need is closed: they wait for the next process that has
        the socket. One that goes on and ends well is still answered. One that fails is not, because nobody knows of
        what: whoever asked is told that the node has gone, and asks again."""
        if self._retired.is_set():
            return
        self._retired.set()
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake)

    def _accept(self) -> None:
        # Other processes accept there, too, and may have got a blocking socket from an older version.
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while poll.poll() and not self._retired.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not is_passing(error):
                    log.info("no more commands are taken: %s", error)
                    return
                log.warning("a command has to wait: %s", error)
                time.sleep(_AGAIN_S)
                continue
            try:
                threading.Thread(target=self._converse, args=(Channel(connection),), daemon=True).start()
            except RuntimeError as error:
                log.warning("a command is refused: %s", error)
                _refuse(Channel(connection))

    def _converse(self, channel: Channel) -> None:
        try:
            request = channel.receive()
            if request is None:
                return
            handler = self._handlers.get(str(request.get("op")))
            if handler is None:
                raise errors.UnsupportedError(f"this node does not know how to {request.get('op')!r}")
            channel.send({"ok": handler(channel, request)})
        except (BrokenPipeError, ConnectionError):
            return
        except Exception as error:
            if self._retired.is_set():
                log.info("a command is left to the next worker: %s", error)
                return
            if not isinstance(error, (PagepoolError, OSError)):
                log.exception("a command failed")
            with suppress(OSError):
                channel.send({"error": encode_error(error)})
        finally:
            channel.close()


def _refuse(channel: Channel) -> None:
    """Say that there is no thread for a command. One that got no answer would take the node for dead."""
    busy = errors.BusyError(
        "the node may have no more threads: see pids.max of its cgroup, TasksMax= of a unit, ulimit -u"
    )
    with suppress(OSError, PagepoolError):
        channel.send({"error": encode_error(busy)})
    channel.close()
