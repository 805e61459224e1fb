"""The encoders of the Go clients, each a WebAssembly program that never changes.

A program is one release of a library (`modules/build.py` has the list, and builds them). Only programs make the same
bytes for ever: an encoder that a package manager updates does not. A stream is compressed by a process of its own
(`process`), which has what it takes to run such programs, and no access to anything but its standard input and output.
"""

from __future__ import annotations

import importlib.util
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import zstandard
from blake3 import blake3

from pagepool.errors import CorruptError
from pagepool_service.encoders.base import ZSTD_MAGIC, EncoderDiedError, EncoderMissingError, gzip_header, is_background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

MODULES = Path(__file__).resolve().parent / "modules"
SUFFIX = ".wasm.zst"
_PIECE = 256 << 10
_LONGEST_SILENCE_S = 600.0  # of a program, in which it neither takes nor gives anything
_LOOK_S = 0.5
_KNOWS_NONE = (2, 3)  # what it exits with where there is no such encoder, or program
_MOST_SAID = 4096  # bytes of its standard error that are looked at
_EXTRA_FLAGS = 8  # where that byte is in a gzip header
_GO_HEADER = 10  # bytes of the gzip header that Go's libraries write where nothing else is asked for
_RUNTIME = "wasmtime"
_LEAST_PREFIX = 64  # bytes of compressed data that a candidate must have made right
_compiled: Path | None = None  # where what compiling came to is kept

# Levels by what they leave in the header's byte of extra flags; those that are asked for by name come last.
_GZIP_LEVELS: dict[int, tuple[tuple[int, ...], ...]] = {0: ((-1,), (6, 5, 4, 7, 8, 3, 2)), 2: ((9,),), 4: ((1,),)}
_ZSTD_LEVELS = ((3, 1, 7, 20),)  # one of each of the four speeds that the library has
# Programs and what they are asked for, the likeliest first.
_GZIP: tuple[tuple[str, str], ...] = (
    ("klauspost-1.18", "pgzip"),
    ("go-1.26", "gzip"),
    ("klauspost-1.19", "pgzip"),
    ("klauspost-1.20", "pgzip"),
    ("go-1.27", "gzip"),
    ("klauspost-1.18", "gzip"),
    ("klauspost-1.19", "gzip"),
    ("klauspost-1.20", "gzip"),
    ("klauspost-1.18.1", "pgzip"),
    ("klauspost-1.15", "pgzip"),
    ("klauspost-1.14", "pgzip"),
    ("klauspost-1.13", "pgzip"),
    ("klauspost-1.15", "gzip"),
    ("klauspost-1.14", "gzip"),
    ("klauspost-1.13", "gzip"),
)
_ZSTD = tuple(
    (f"klauspost-{version}", kind) for version in ("1.18", "1.15", "1.20", "1.13") for kind in ("zstd-detected", "zstd")
)


@dataclass(frozen=True, slots=True)
class FrozenEncoder:
    """One of the programs, and what it is asked for.

    Args:
        module: the program's name.
        program: BLAKE3 of it, hex.
        kind: what it has: `gzip`, `pgzip`, `zstd`, or that with the first 8 bytes by themselves, `zstd-detected`.
        level: of compression, as the library counts.
        header: hex of the gzip header, which is kept as it came; empty for zstd.
    """

    module: str
    program: str
    kind: str
    level: int
    header: str

    def __str__(self) -> str:
        return f"{self.module} {self.kind}:{self.level}"

    def encode(self) -> bytes:
        """The parameters as stored: JSON."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, fields: dict[str, object], name: str) -> FrozenEncoder:
        """Take them from what was stored.

        Raises:
            CorruptError: they are no parameters.
        """
        match fields:
            case {
                "module": str(module),
                "program": str(program),
                "kind": str(kind),
                "level": int(level),
                "header": str(header),
            }:
                return cls(module, program, kind, level, header)
        raise CorruptError("blob", name, f"its encoder cannot be read: {fields}")

    def is_here(self) -> bool:
        """See `Encoder`."""
        return can_run_programs() and program_digest(self.module) == self.program

    def compress(self, plain: Iterable[bytes], look: Callable[[], None] = lambda: None) -> Iterator[bytes]:
        """See `Encoder`."""
        if program_digest(self.module) != self.program:
            raise EncoderMissingError(f"this pagepool has no encoder {self.module} with the digest {self.program}")
        made = _run(self.module, ["stream", f"{self.kind}:{self.level}"], plain, look)
        if not self.header:
            yield from made
            return
        yield bytes.fromhex(self.header)
        left = _GO_HEADER
        for piece in made:
            if len(piece) > left:
                yield piece[left:]
            left = max(0, left - len(piece))


def keep_compiled(directory: Path, *, make: bool = True) -> None:
    """Keep what compiling the programs comes to in a directory, not among temporary files.

    Args:
        make: make the directory; without it, one that is not there is not used.
    """
    global _compiled
    _compiled = directory if make or directory.is_dir() else None


def can_run_programs() -> bool:
    """Whether what runs the programs is installed."""
    return importlib.util.find_spec(_RUNTIME) is not None


def load_program(module: str) -> bytes | None:
    """A program, as WebAssembly has it; None if there is none of that name."""
    if not module.replace("-", "").replace(".", "").isalnum():
        return None
    try:
        return zstandard.decompress((MODULES / f"{module}{SUFFIX}").read_bytes())
    except (OSError, zstandard.ZstdError):
        return None


@lru_cache(16)
def program_digest(module: str) -> str | None:
    """BLAKE3 of a program, hex; None if there is none of that name."""
    program = load_program(module)
    return None if program is None else blake3(program).hexdigest()


def frozen_encoders(
    head: bytes, plain_head: bytes, *, whole: bool, look: Callable[[], None] = lambda: None
) -> Iterator[FrozenEncoder]:
    """The encoders that make such a beginning, the likeliest first; each is run when it is asked for.

    Args:
        head: the blob's first bytes; at least as many as `plain_head` can be compressed to, or all.
        plain_head: the tar's first bytes.
        whole: whether these are all.
        look: called before each program that is run, and at each of its levels, which takes seconds; what it raises
            ends this.

    Raises:
        EncoderMissingError: what runs them is not installed, or fails.
    """
    header = gzip_header(head)
    if header is not None:
        rounds, asked, skipped = _GZIP_LEVELS.get(header[_EXTRA_FLAGS], ()), _GZIP, _GO_HEADER
    elif head.startswith(ZSTD_MAGIC):
        rounds, asked, skipped = _ZSTD_LEVELS, _ZSTD, 0
    else:
        return
    header = header or b""
    body = head[len(header) :]
    for levels, (module, kind) in product(rounds, asked):
        program = program_digest(module)
        if program is None:
            continue
        look()
        made = _probe(module, [f"{kind}:{level}" for level in levels], plain_head)
        scores = {}
        for level, one in zip(levels, made, strict=True):
            look()
            scores[level] = _score(one[skipped:], body, whole)
        for level in sorted(filter(scores.__getitem__, levels), key=scores.__getitem__, reverse=True):
            yield FrozenEncoder(module, program, kind, level, header.hex())


def _score(made: bytes, body: bytes, whole: bool) -> int:
    """How much of what was made is the blob's beginning; 0 if that is less than it must be.

    What an encoder makes of a beginning alone ends there, so its last block is another than the blob's.
    """
    comparable = min(len(made), len(body))
    same = _common(made, body)
    needed = comparable if whole else max(_LEAST_PREFIX, comparable // 2)
    return same if same >= needed else 0


def _common(first: bytes, second: bytes) -> int:
    """How many bytes two begin with that are the same."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _probe(module: str, names: Sequence[str], plain: bytes) -> Iterator[bytes]:
    """What a program makes by each of these names. One is in memory at a time."""
    made = bytearray()
    for piece in _run(module, ["probe", *names], [plain]):
        made += piece
        while len(made) >= 4 and len(made) >= (end := 4 + int.from_bytes(made[:4], "little")):
            yield bytes(made[4:end])
            del made[:end]


def _run(
    module: str, words: Sequence[str], plain: Iterable[bytes], look: Callable[[], None] = lambda: None
) -> Iterator[bytes]:
    """Run a program on a stream. The process ends with the iterator, however that ends.

    Raises:
        EncoderMissingError: it cannot be run, hangs, or has nothing of that name.
        EncoderDiedError: it ended before its time.
    """
    if not can_run_programs():
        raise EncoderMissingError(f"the encoder {module} needs {_RUNTIME}: pip install 'pagepool[rebuild]'")
    try:
        kept = [_compiled, Path(tempfile.gettempdir()) / f"pagepool-encoders-{os.geteuid()}"]
        command = [sys.executable, "-P", "-m", "pagepool_service.encoders.process", module, *words, "--"]
        command += [str(directory) for directory in kept if directory is not None]
        pipe = subprocess.PIPE
        # In a group of its own: Ctrl-C is for whoever reads what it makes.
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, process_group=0)
    except OSError as error:
        raise EncoderMissingError(f"the encoder {module} cannot be run: {error}") from error
    if is_background():
        with suppress(OSError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, process.pid, 19)
    said = bytearray()
    with process:
        try:
            yield from _exchange(process, iter(plain), said, look)
            code = process.wait(_LONGEST_SILENCE_S)
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            process.kill()
            raise EncoderMissingError(f"the encoder {module} hangs") from error
        except BaseException:
            process.kill()
            raise
    if code:
        reason = said.decode(errors="replace").strip().rpartition("\n")[2]
        kind = EncoderMissingError if code in _KNOWS_NONE else EncoderDiedError
        raise kind(f"the encoder {module} ended with {code}{': ' if reason else ''}{reason}")


def _exchange(
    process: subprocess.Popen[bytes], plain: Iterator[bytes], said: bytearray, look: Callable[[], None]
) -> Iterator[bytes]:
    """Write to a process what it takes, and yield what it gives, as either is possible.

    Args:
        said: gets the end of its standard error.
        look: called before each, and where nothing is possible each `_LOOK_S`.

    Raises:
        TimeoutError: it hangs.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    inward, outward, errors = process.stdin.fileno(), process.stdout.fileno(), process.stderr.fileno()
    os.set_blocking(inward, False)
    held = memoryview(b"")
    heard = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(outward, selectors.EVENT_READ)
        selector.register(inward, selectors.EVENT_WRITE)
        selector.register(errors, selectors.EVENT_READ)
        while outward in (registered := selector.get_map()) or errors in registered:
            look()
            ready = selector.select(_LOOK_S)
            if ready:
                heard = time.monotonic()
            elif time.monotonic() - heard >= _LONGEST_SILENCE_S:
                raise TimeoutError
            for key, _ in ready:
                if key.fd != inward:
                    piece = os.read(key.fd, _PIECE)
                    if not piece:
                        selector.unregister(key.fd)
                    elif key.fd == outward:
                        yield piece
                    else:
                        said[:] = (said + piece)[-_MOST_SAID:]
                    continue
                try:
                    held = held or memoryview(next(plain))
                    held = held[os.write(inward, held) :]
                except (StopIteration, BrokenPipeError):  # it has all, or has ended: its exit code tells
                    selector.unregister(inward)
                    process.stdin.close()
