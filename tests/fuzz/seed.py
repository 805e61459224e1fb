"""Write the seeds of every target to `corpus`: ``python -m tests.fuzz.seed``, when a target or format has changed."""

from __future__ import annotations

import shutil

from tests.fuzz import inputs
from tests.fuzz.targets import TARGETS


def main() -> None:
    """Write them all anew."""
    shutil.rmtree(inputs.CORPUS, ignore_errors=True)
    for target in TARGETS.values():
        for data in target.seeds():
            inputs.keep(inputs.CORPUS / target.name, data)
        found = inputs.read(inputs.CORPUS, target.name)
        print(f"{target.name}: {len(found)} seeds, {sum(map(len, found.values()))} bytes")


if __name__ == "__main__":
    main()
