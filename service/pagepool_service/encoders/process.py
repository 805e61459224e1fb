"""The process that runs an encoder.

``python -m pagepool_service.encoders.process MODULE stream|probe KIND:LEVEL... -- DIRECTORY...`` reads standard input
and writes standard output; the program that it runs can reach nothing else. What compiling it came to, which takes
seconds, is kept for the next in the first directory that takes it and that only this user can write to, after its
digest: machine code that a crash has left half written would end each process that runs it. What another version of
the runtime has kept there goes.

It ends at once when nobody reads what it makes any more, be it compiling or waiting: whoever asked for it was killed.
"""

from __future__ import annotations

import os
import platform
import select
import stat
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import wasmtime
from blake3 import blake3

from pagepool_service.encoders.frozen import MODULES, SUFFIX, load_program, program_digest

_MOST_MEMORY = 1 << 30
_DIGEST_SIZE = 32
_NEW = ".new-"
_LONGEST_WRITE_S = 3600.0  # a file that is new for longer is of a process that was killed


def main() -> int:
    """Run one program on one stream."""
    between = sys.argv.index("--")
    module, *words = sys.argv[1:between]
    threading.Thread(target=_end_unread, daemon=True).start()
    engine = wasmtime.Engine(wasmtime.Config())
    loaded = _load(engine, module, [Path(name) for name in sys.argv[between + 1 :]])
    if loaded is None:
        print(f"no encoder {module}", file=sys.stderr)
        return 3
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    store = wasmtime.Store(engine)
    store.set_limits(memory_size=_MOST_MEMORY)
    wasi = wasmtime.WasiConfig()
    wasi.argv = [module, *words]
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    store.set_wasi(wasi)
    start = linker.instantiate(store, loaded).exports(store)["_start"]
    assert isinstance(start, wasmtime.Func)
    try:
        start(store)
    except wasmtime.ExitTrap as ended:
        return int(ended.code)
    return 0


def _end_unread() -> None:
    """End the process once the other end of its standard output is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are told without being asked for
    poll.poll()
    os._exit(1)


def _load(engine: wasmtime.Engine, module: str, directories: list[Path]) -> wasmtime.Module | None:
    if program_digest(module) is None:
        return None
    name = _name_of(module)
    for directory in filter(_is_private, directories):
        with suppress(OSError, wasmtime.WasmtimeError):
            path = directory / name
            # Read, and not mapped: a file system may not allow that anything on it is run.
            if path.stat().st_uid == os.geteuid() and (known := _sound(path.read_bytes())) is not None:
                loaded = wasmtime.Module.deserialize(engine, known)
                if directory != directories[0]:
                    _keep(directories[:1], name, known)
                return loaded
    program = load_program(module)
    assert program is not None
    compiled = wasmtime.Module(engine, program)
    _keep(directories, name, bytes(compiled.serialize()))
    return compiled


def _name_of(module: str) -> str:
    """How a compiled program is called: it is of the program, the runtime and the machine."""
    digest = program_digest(module)
    assert digest is not None
    return f"{digest[:32]}-{version('wasmtime')}-{platform.machine()}.cwasm"


def _is_private(directory: Path) -> bool:
    """Whether it is there, and this user's own: what lies in it is run."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _sound(kept: bytes) -> bytes | None:
    digest, data = kept[:_DIGEST_SIZE], kept[_DIGEST_SIZE:]
    return data if blake3(data).digest() == digest else None


def _keep(directories: list[Path], name: str, data: bytes) -> None:
    """Write a file to the first of some directories that takes it."""
    for directory in directories:
        with suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private(directory):
                _write(directory / name, data)
                return


def _write(path: Path, data: bytes) -> None:
    _sweep(path.parent)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_NEW, delete=False) as file:
        try:
            file.write(blake3(data).digest() + data)
            file.close()
            Path(file.name).rename(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _sweep(directory: Path) -> None:
    """Remove what nothing here can run, and what was left half written."""
    used = {_name_of(path.name.removesuffix(SUFFIX)) for path in MODULES.glob(f"*{SUFFIX}")}
    for path in list(directory.iterdir()):
        with suppress(OSError):
            is_left = path.name.startswith(_NEW) and time.time() - path.stat().st_mtime > _LONGEST_WRITE_S
            if is_left or (path.suffix == ".cwasm" and path.name not in used):
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
