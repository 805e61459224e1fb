"""A program that uses a mount as a container does: first opens, running programs, faults in large mapped files.

    python containers.py ROOT MANIFEST SECONDS

MANIFEST is JSON: the SHA-256 of each file by its path; programs are in ``bin/``, large files in ``large/``. Goes
through everything once, a little at a time so that it takes SECONDS, then again and again until they are over. Prints
JSON: how much was done, and every error and wrong byte.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """The program."""
    root, manifest, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    expected = json.loads(manifest.read_text())
    names = sorted(expected)
    random.Random(str(root)).shuffle(names)
    done: Counter[str] = Counter()
    errors: list[str] = []
    begun = time.monotonic()
    first = True
    while first or time.monotonic() < begun + seconds:
        for place, name in enumerate(names):
            action, what = _action(name)
            try:
                right = action(root / name) == expected[name]
            except OSError as error:
                errors.append(f"{what} {name}: {error}")
            else:
                done[what] += 1
                if not right:
                    errors.append(f"{what} {name}: wrong bytes")
            if first:
                # First opens are to go on for as long as processes are killed.
                time.sleep(max(0.0, begun + seconds * (place + 1) / len(names) - time.monotonic()))
        first = False
    print(json.dumps({"done": done, "errors": errors}))


def _action(name: str) -> tuple[Callable[[Path], str], str]:
    if name.startswith("bin/"):
        return _execute, "exec"
    return (_fault, "mmap") if name.startswith("large/") else (_read, "open")


def _read(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _execute(path: Path) -> str:
    done = subprocess.run([path], capture_output=True, check=False)
    if done.returncode or done.stderr:
        raise OSError(f"it ended with {done.returncode}: {done.stderr!r}")
    return _read(path)


def _fault(path: Path) -> str:
    """Touch pages here and there, then all of them."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for offset in random.Random(str(path)).sample(range(0, len(mapped), 4096), 16):
            mapped[offset]
        return hashlib.sha256(mapped).hexdigest()


if __name__ == "__main__":
    main()
