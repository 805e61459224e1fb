"""Check a store: read everything again, hash it, and follow every reference. Changes nothing.

The checks (`checks`) run in a process of their own, because reading damaged database pages can end a process (SIGSEGV,
SIGBUS). When that happens the table at hand is reported, and another process goes on with the next one.

May run beside a service: several processes share the environment, no transaction lasts long, and records that come or
go meanwhile are no errors. What is compared is named in docs/format/store.md, "What fsck checks".
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pagepool.errors import CorruptError, StoreFormatError
from pagepool_service.store.checks import CONCERN, STAGES, Message, Problem, Request, run_stages
from pagepool_service.store.environment import FORMAT_VERSION
from pagepool_service.store.store import check_stamp, check_there

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.connection import Connection
    from pathlib import Path

_OPENING = -1  # before the first stage


@dataclass(slots=True)
class Report:
    """What a check found.

    Args:
        problems: what is damaged; none if the store is whole.
        notes: what is worth knowing, and costs nobody anything.
        checked: how many of what were looked at.
        quick: whether content was left unread.
        seconds: how long it took.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    quick: bool = False
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems


def check_store(
    data: Path,
    *,
    quick: bool = False,
    images: Iterable[str] = (),
    watch: Callable[[Message], None] | None = None,
) -> Report:
    """Check a data directory. Blocks, for as long as reading all of it takes.

    Args:
        quick: records' checksums and structure only; no content is read.
        images: references; check only what these are made of.
        watch: sees every message of the checks as it comes.

    Raises:
        StoreFormatError: it is not a data directory, or of another format.
        ReferenceInvalidError, NotFoundError: an image that was asked for is not there.
    """
    check_there(data)
    check_stamp(data, whole=False)
    began = time.monotonic()
    run = _Run(Report(quick=quick), watch)
    request = Request(data, quick, tuple(images))
    while not run.in_process(request):
        request = replace(request, first=run.stage + 1, problems=tuple(run.report.problems))
        if run.stage == _OPENING or request.first > CONCERN:
            break
    run.report.seconds = time.monotonic() - began
    return run.report


class _Run:
    """Gathers the messages of one check, over all its processes."""

    def __init__(self, report: Report, watch: Callable[[Message], None] | None) -> None:
        self.report = report
        self.stage = _OPENING
        self._watch = watch
        self._ended = False

    def in_process(self, request: Request) -> bool:
        """Run the checks in a new process. Returns whether it came to their end."""
        self.stage = _OPENING
        # Spawned, not forked: nothing of this process's threads, locks and open environments is shared.
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(sender, request), daemon=True)
        process.start()
        sender.close()
        try:
            with receiver:
                self._receive(receiver, request)
        finally:
            if not self._ended:
                process.join(1.0)
            if process.is_alive() and not self._ended:
                process.kill()
            process.join()
        if not self._ended:
            self._add(Problem("database", self._where(), f"the database itself is damaged near here: {_how(process)}"))
        return self._ended

    def _receive(self, receiver: Connection, request: Request) -> None:
        while not self._ended:
            try:
                message: Message = receiver.recv()
            except (EOFError, OSError):
                return
            self._take(message, request)

    def _take(self, message: Message, request: Request) -> None:
        if self._watch:
            self._watch(message)
        if message.kind == "begin":
            self.stage = message.number
        elif message.kind == "count":
            self.report.checked[message.name] += message.number
        elif message.kind == "note":
            self.report.notes.append(message.name)
        elif message.kind == "problem" and message.problem:
            self._add(message.problem)
        elif message.kind == "images" and message.problem:
            named = message.problem
            self.report.problems = [
                named if replace(problem, images=named.images) == named else problem for problem in self.report.problems
            ]
        elif message.kind == "error" and message.error:
            self._take_error(message.error.restore(), request)
        self._ended = message.kind in ("end", "error")

    def _take_error(self, error: Exception, request: Request) -> None:
        """The store could not be opened: damaged, or none of ours."""
        try:
            text = (request.data / "format").read_text(errors="replace")
        except OSError:
            text = ""
        ours = text.strip() == f"pagepool store {FORMAT_VERSION}"
        if isinstance(error, CorruptError) or (isinstance(error, StoreFormatError) and ours):
            self._add(Problem("database", "data.mdb", f"it cannot be opened: {error}"))
            return
        raise error

    def _add(self, problem: Problem) -> None:
        if problem not in self.report.problems:
            self.report.problems.append(problem)

    def _where(self) -> str:
        if self.stage == _OPENING:
            return "data.mdb"
        return STAGES[self.stage][0] if self.stage < CONCERN else "images"


def _how(process: multiprocessing.process.BaseProcess) -> str:
    code = process.exitcode or 0
    if code < 0:
        return f"the checking process was ended by {signal.Signals(-code).name}"
    return f"the checking process ended with status {code}"


def _child(sender: Connection, request: Request) -> None:
    """What the process does. Ctrl-C is its parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_stages(request, sender.send)
