"""Collection: what nothing needs any more goes, while the service runs (docs/design.md, "Collection")."""

from pagepool_service.store.collect.collector import Collector, estimate_garbage, open_for_collection
from pagepool_service.store.collect.policy import DEFAULT_GRACE_S, DEFAULT_UNTAGGED_S, Policy, TagRule
from pagepool_service.store.collect.report import Report

__all__ = [
    "DEFAULT_GRACE_S",
    "DEFAULT_UNTAGGED_S",
    "Collector",
    "Policy",
    "Report",
    "TagRule",
    "estimate_garbage",
    "open_for_collection",
]
