"""All targets, by name."""

from tests.fuzz.targets import documents, files, kernel, layers, requests, trees

TARGETS = {
    target.name: target for module in (layers, documents, trees, requests, kernel, files) for target in module.TARGETS
}

__all__ = ["TARGETS"]
