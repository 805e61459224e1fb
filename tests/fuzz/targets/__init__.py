"""All targets, by name."""

from tests.fuzz.targets import access, documents, files, kernel, layers, requests, trees

TARGETS = {
    target.name: target
    for module in (layers, documents, trees, requests, access, kernel, files)
    for target in module.TARGETS
}

__all__ = ["TARGETS"]
