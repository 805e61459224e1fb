"""The smallest root file system that Python runs in: Debian's interpreter, and what a program of it loads."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

PYTHON = Path("/usr/bin/python3")
_MODULES = "__future__, ctypes, encodings.ascii, json, mmap, os, stat, struct, sys, collections.abc"
_LOOK = f"""
from __future__ import annotations
import {_MODULES}
import json, sys
files = [module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
maps = [line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if line.count("/")]
print(json.dumps([sys.executable, *files, *maps]))
"""


@cache
def python_root() -> dict[str, bytes]:
    """Its files, by path without the leading slash; run as ``/usr/bin/python3``. About 10 MB."""
    if not PYTHON.exists():
        pytest.skip(f"needs {PYTHON}")
    done = subprocess.run([PYTHON, "-I", "-S", "-c", _LOOK], capture_output=True, text=True, check=True)
    files = {name: Path(name).read_bytes() for name in json.loads(done.stdout) if Path(name).is_file()}
    files = {name: data for name, data in files.items() if "/bin/" not in name} | {str(PYTHON): PYTHON.read_bytes()}
    # Libraries are asked for by a part of the name of what was mapped.
    files |= {found[0]: data for name, data in files.items() if (found := re.match(r".*\.so\.\d+", name))}
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    if loader.exists():
        files[str(loader)] = loader.read_bytes()
    return {name.lstrip("/"): data for name, data in files.items()}
