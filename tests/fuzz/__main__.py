"""Run one target for long: ``python -m tests.fuzz TARGET [--seconds N | --runs N]``.

A finding ends the run with exit code 1; its input is written to `regressions/TARGET`, where the tests find it. Inputs
that reach new code are kept in a directory of their own (``--keep``), so that the next run begins with them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz import inputs
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import LONGEST, Target

LONGEST_S = 10
MOST_MEMORY = 2 << 30


class TooSlowError(BaseException):
    """An input took longer than `LONGEST_S`."""


def main() -> int:
    """Parse the command line, and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", help="without it: a list of all")
    parser.add_argument("--seconds", type=int, default=60, help="how long to run (default: 60)")
    parser.add_argument("--runs", type=int, default=0, help="how many inputs to try, instead of a time")
    parser.add_argument("--seed", type=int, default=0, help="of the pseudo-random numbers (default: by the clock)")
    parser.add_argument("--keep", type=Path, help="where inputs go that reach new code (with atheris only)")
    parser.add_argument("--blind", action="store_true", help="without atheris, though it is installed")
    options = parser.parse_args()
    guided = not options.blind and importlib.util.find_spec("atheris") is not None
    targets = _load(guided=guided)
    if options.target is None:
        print(*sorted(targets), sep="\n")
        return 0
    if options.target not in targets:
        parser.error(f"there is no target {options.target!r}; without arguments all are listed")
    logging.disable(logging.CRITICAL)
    options.seed = options.seed or int(time.time())
    return (_run_guided if guided else _run_blind)(targets[options.target], options)


def _load(*, guided: bool) -> dict[str, Target]:
    """The targets. What they import is instrumented where atheris is to guide."""
    with _instrumented() if guided else contextlib.nullcontext():
        from tests.fuzz.targets import TARGETS
    return TARGETS


def _instrumented() -> Any:
    import atheris

    return atheris.instrument_imports(include=["pagepool", "pagepool_service"])


def _run_guided(target: Target, options: argparse.Namespace) -> int:
    """By libFuzzer, which ends the process and prints the counts."""
    import atheris

    found = inputs.REGRESSIONS / target.name
    found.mkdir(parents=True, exist_ok=True)
    keep = options.keep or Path(os.environ.get("TMPDIR", "/tmp")) / "pagepool-fuzz" / target.name
    keep.mkdir(parents=True, exist_ok=True)
    words = keep.parent / f"{target.name}.words"
    words.write_text("".join(_quoted(word) for word in (*target.words, b"\0\0\0\0") if len(word) <= 64))
    arguments = [
        *(sys.argv[0], str(keep), str(inputs.CORPUS / target.name), str(found), f"-artifact_prefix={found}/"),
        *(f"-max_len={LONGEST}", f"-timeout={LONGEST_S}", f"-rss_limit_mb={MOST_MEMORY >> 20}", f"-dict={words}"),
        *(f"-runs={options.runs}" if options.runs else f"-max_total_time={options.seconds}", f"-seed={options.seed}"),
        "-print_final_stats=1",
    ]
    atheris.Setup(arguments, target.try_one)
    atheris.Fuzz()
    return 0


def _quoted(word: bytes) -> str:
    """A line of libFuzzer's dictionary."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'


def _run_blind(target: Target, options: argparse.Namespace) -> int:
    """By mutation, within bounds of time and memory."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    signal.signal(signal.SIGALRM, _too_slow)
    known = [*inputs.read(inputs.CORPUS, target.name).values(), *inputs.read(inputs.REGRESSIONS, target.name).values()]
    mutator = Mutator(known or [b""], target.words, options.seed)
    begun, runs = time.monotonic(), 0
    for data in _inputs(known, mutator.next, options, begun):
        runs += 1
        signal.alarm(LONGEST_S)
        try:
            target.try_one(data)
        except BaseException:  # noqa: BLE001 - whatever it is, it is a finding
            signal.alarm(0)
            traceback.print_exc()
            print(f"after {runs} runs: {inputs.keep(inputs.REGRESSIONS / target.name, data)}")
            return 1
    signal.alarm(0)
    print(f"{target.name}: {runs} runs in {time.monotonic() - begun:.0f} s, seed {options.seed}, nothing found")
    return 0


def _inputs(
    known: list[bytes], mutated: Callable[[], bytes], options: argparse.Namespace, begun: float
) -> Iterator[bytes]:
    yield from known
    count = len(known)
    while count < options.runs or (not options.runs and time.monotonic() - begun < options.seconds):
        yield mutated()
        count += 1


def _too_slow(_number: int, _frame: FrameType | None) -> None:
    raise TooSlowError(f"it took more than {LONGEST_S} s")


if __name__ == "__main__":
    sys.exit(main())
