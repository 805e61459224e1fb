"""What a process does when LMDB refuses everything: end, and let the supervisor start a fresh one."""

from __future__ import annotations

import logging
import os
from typing import Never

log = logging.getLogger("pagepool")


def end_at_once() -> Never:
    """End the process. LMDB can only go on in one that opens it anew, from what is durable."""
    log.critical("the database refused a write of its header; this process ends")
    os._exit(70)
