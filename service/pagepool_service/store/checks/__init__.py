"""The checks of `fsck`: each reads one kind of record, and reports what is wrong with it."""

from pagepool_service.store.checks.findings import Findings, Message, Problem, Request
from pagepool_service.store.checks.stages import CONCERN, STAGES, run_stages

__all__ = ["CONCERN", "STAGES", "Findings", "Message", "Problem", "Request", "run_stages"]
