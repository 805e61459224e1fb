"""What is installed with pagepool, and what its index says of each: ``python -m tests.support.dependencyaudit``.

Prints a Markdown table: every package that `pagepool[service,fsspec]` brings with it in this environment, its version,
licence, when that version was released, whether a later one is there, and the advisories that the index lists for it.
Asks one document of the index for each package (PyPI's JSON interface), so it is run by hand; docs/dependencies.md has
what it printed. Exit code 1 if there is an advisory, 3 if the index could not be asked.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from typing import Any

import httpx
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_INDEX = "https://pypi.org/pypi"
_EXTRAS = frozenset({"service", "fsspec"})


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of a package.

    Args:
        released: day of the installed version's release; "" if the index does not say.
        latest: the newest version.
        advisories: those that the index lists for the installed version; None if it lists only those of the newest.
    """

    name: str
    version: str
    licence: str
    released: str
    latest: str
    advisories: tuple[str, ...] | None

    def __str__(self) -> str:
        newer = "" if self.latest == self.version else self.latest
        found = "not listed for this version" if self.advisories is None else ", ".join(self.advisories) or "none"
        return f"| {self.name} | {self.version} | {self.licence} | {self.released} | {newer} | {found} |"


def installed() -> list[Distribution]:
    """pagepool's dependencies, and theirs, by name."""
    found: dict[str, Distribution] = {}
    todo = [("pagepool", _EXTRAS)]
    while todo:
        name, extras = todo.pop()
        this = distribution(name)
        if canonicalize_name(name) in found:
            continue
        found[canonicalize_name(name)] = this
        for text in this.requires or ():
            wanted = Requirement(text)
            marker = wanted.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((wanted.name, frozenset(wanted.extras)))
    del found["pagepool"]
    return [found[name] for name in sorted(found)]


def look_up(http: httpx.Client, this: Distribution) -> Row:
    """Ask the index about a package."""
    name, version = canonicalize_name(this.name), this.version
    answer = http.get(f"{_INDEX}/{name}/{version}/json")
    exact = answer.status_code == 200
    if not exact:
        answer = http.get(f"{_INDEX}/{name}/json").raise_for_status()
    document: dict[str, Any] = answer.json()
    latest = document["info"]["version"]
    files = document.get("releases", {}).get(version) or (document["urls"] if latest == version or exact else [])
    known = [str(one.get("id", one)) for one in document.get("vulnerabilities") or () if not one.get("withdrawn")]
    return Row(
        name,
        version,
        licence_of(this),
        min((file["upload_time"][:10] for file in files), default=""),
        latest,
        tuple(known) if exact or latest == version else None,
    )


def licence_of(this: Distribution) -> str:
    """What a package says of its licence: the expression, its classifiers, or the first line of the field."""
    fields = this.metadata.json
    if expression := fields.get("license_expression"):
        return str(expression)
    named = [one.rpartition(" :: ")[2] for one in fields.get("classifier", ()) if one.startswith("License ::")]
    return ", ".join(named) or str(fields.get("license") or "not said").splitlines()[0][:60]


def main() -> int:
    """Print the table."""
    try:
        with httpx.Client(timeout=30, follow_redirects=True) as http:
            rows = [look_up(http, this) for this in installed()]
    except httpx.HTTPError as error:
        print(f"the index cannot be asked: {error}", file=sys.stderr)
        return 3
    print("| package | version | licence | released | newer | advisories |\n|---|---|---|---|---|---|")
    print(*rows, sep="\n")
    return 1 if any(row.advisories for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
