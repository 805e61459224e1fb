"""The process that runs an encoder.

``python -m pagepool_service.encoders.process DIRECTORY MODULE stream|probe KIND:LEVEL...`` reads standard input and
writes standard output; the program that it runs can reach nothing else. What compiling it came to, which takes seconds,
is kept for the next in the directory, if only this user can write to that, after its digest: machine code that a crash
has left half written would end each process that runs it.
"""

from __future__ import annotations

import os
import platform
import stat
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import wasmtime
from blake3 import blake3

from pagepool_service.encoders.frozen import load_program, program_digest

_MOST_MEMORY = 1 << 30
_DIGEST_SIZE = 32


def main() -> int:
    """Run one program on one stream."""
    directory, module, *words = sys.argv[1:]
    engine = wasmtime.Engine(wasmtime.Config())
    loaded = _load(engine, module, Path(directory))
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


def _load(engine: wasmtime.Engine, module: str, kept: Path) -> wasmtime.Module | None:
    digest = program_digest(module)
    if digest is None:
        return None
    directory = kept if _is_private(kept) else None
    path = None if directory is None else directory / f"{digest[:32]}-{version('wasmtime')}-{platform.machine()}.cwasm"
    if path is not None:
        with suppress(OSError, wasmtime.WasmtimeError):
            # Read, and not mapped: a file system may not allow that anything on it is run.
            if path.stat().st_uid == os.geteuid() and (known := _sound(path.read_bytes())) is not None:
                return wasmtime.Module.deserialize(engine, known)
    program = load_program(module)
    assert program is not None
    compiled = wasmtime.Module(engine, program)
    if path is not None:
        with suppress(OSError):
            _keep(path, bytes(compiled.serialize()))
    return compiled


def _is_private(directory: Path) -> bool:
    """Whether it is this user's own; it is made if it is not there. What lies in it is run."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _sound(kept: bytes) -> bytes | None:
    digest, data = kept[:_DIGEST_SIZE], kept[_DIGEST_SIZE:]
    return data if blake3(data).digest() == digest else None


def _keep(path: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        try:
            file.write(blake3(data).digest() + data)
            file.close()
            Path(file.name).rename(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


if __name__ == "__main__":
    sys.exit(main())
