"""A node's pool of objects: one file for each unique content, and one copy of its pages in memory.

    with Pool.open(path, budget=10 << 30) as pool:
        with pool.get(digest) or pool.put(digest, data) as file:
            file.view[:4096]

`Pool` is shared by all processes of its owner; `ReadOnlyPool` is others' view of it. docs/format/pool.md describes the
directory.
"""

from typing import TYPE_CHECKING

from pagepool.lazily import attach

if TYPE_CHECKING:
    from pagepool.pool.custody import Custody
    from pagepool.pool.files import PoolFile
    from pagepool.pool.handing import receive_objects, send_objects
    from pagepool.pool.openobjects import OpenObjects
    from pagepool.pool.partial import Partial
    from pagepool.pool.pool import Pool
    from pagepool.pool.reader import ReadOnlyPool
    from pagepool.pool.readonly import ReadOnlyMount
    from pagepool.pool.residency import resident
    from pagepool.pool.scrub import Damage, Scrubber, ScrubReport
    from pagepool.pool.stats import PoolStats
    from pagepool.pool.suspects import SuspectReport, verify_suspects
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "custody": "Custody",
            "files": "PoolFile",
            "handing": "receive_objects send_objects",
            "openobjects": "OpenObjects",
            "partial": "Partial",
            "pool": "Pool",
            "reader": "ReadOnlyPool",
            "readonly": "ReadOnlyMount",
            "residency": "resident",
            "scrub": "Damage Scrubber ScrubReport",
            "stats": "PoolStats",
            "suspects": "SuspectReport verify_suspects",
        },
    )

__all__ = [
    "Custody",
    "Damage",
    "OpenObjects",
    "Partial",
    "Pool",
    "PoolFile",
    "PoolStats",
    "ReadOnlyMount",
    "ReadOnlyPool",
    "ScrubReport",
    "Scrubber",
    "SuspectReport",
    "receive_objects",
    "resident",
    "send_objects",
    "verify_suspects",
]
