"""Build the encoders beside this file, or compare them with what is there: ``python build.py [--check] [NAME...]``.

Needs Go and its module proxy; a release of Go that is not installed is fetched by Go itself. What comes out depends
on nothing else: the same bytes on every machine, which ``--check`` shows. A file that was released once never changes
and never goes, for stores hold layers that only it can make again (docs/format/store.md, "Encoders").
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import zstandard

HERE = Path(__file__).resolve().parent
_COMPILER = "go1.26.8"  # of what is not Go's own library

# name -> directory of the source, release of Go, and of klauspost's compress and pgzip: the last of those that make the
# same bytes. Each is released with what it was built from, and never changes.
ENCODERS = {
    "go-1.26": ("go", "go1.26.8", None, None),
    "go-1.27": ("go", "go1.27.4", None, None),
    "klauspost-1.13": ("klauspost", _COMPILER, "1.13.6", "1.2.5"),
    "klauspost-1.14": ("klauspost", _COMPILER, "1.14.4", "1.2.5"),
    "klauspost-1.15": ("klauspost", _COMPILER, "1.15.9", "1.2.5"),
    "klauspost-1.18": ("klauspost", _COMPILER, "1.18.0", "1.2.6"),
    "klauspost-1.18.1": ("klauspost", _COMPILER, "1.18.1", "1.2.6"),
    "klauspost-1.19": ("klauspost", _COMPILER, "1.19.2", "1.2.6"),
    "klauspost-1.20": ("klauspost", _COMPILER, "1.20.4", "1.2.6"),
}


def build(name: str) -> bytes:
    """Compile one, and compress it."""
    source, release, compress, pgzip = ENCODERS[name]
    settings = {
        "GOTOOLCHAIN": release,
        "GOOS": "wasip1",
        "GOARCH": "wasm",
        "GOFLAGS": "-trimpath -buildvcs=false -mod=mod",
        "GOWORK": "off",
    }
    command = ["env", *(f"{name}={value}" for name, value in settings.items()), "go"]
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(HERE / "source" / "common.go", directory)
        shutil.copy(HERE / "source" / source / "main.go", directory)

        def go(*arguments: str) -> None:
            subprocess.run([*command, *arguments], cwd=directory, check=True)

        go("mod", "init", "pagepool/encoder")
        if compress:
            libraries = (("compress", compress), ("pgzip", pgzip))
            go("get", *(f"github.com/klauspost/{library}@v{version}" for library, version in libraries))
        go("build", "-ldflags=-s -w -buildid=", "-o", "encoder.wasm", ".")
        made = (Path(directory) / "encoder.wasm").read_bytes()
    return zstandard.ZstdCompressor(level=19, write_content_size=True).compress(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; compare the programs with those here")
    parser.add_argument("names", nargs="*", default=list(ENCODERS))
    options = parser.parse_args()
    wrong = []
    for name in options.names:
        path = HERE / f"{name}.wasm.zst"
        made = build(name)
        if options.check:
            here = zstandard.decompress(path.read_bytes())
            equal = here == zstandard.decompress(made)
            print(name, "is what its source makes" if equal else "DIFFERS")
            if not equal:
                wrong.append(name)
        elif path.exists():
            print(f"{name}: {path.name} is there; it must not change. Give a new encoder a new name", file=sys.stderr)
            wrong.append(name)
        else:
            path.write_bytes(made)
            print(name, len(made), "bytes")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
