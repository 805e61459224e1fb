"""What is kept of a repository, decided from values alone.

Kept is what a tag points to, and what nobody has asked for less than a time; and with each manifest what an index of it
lists, what it is about (its subject), and what is about it (its referrers).

Where a rule says how many tags stay, a tag that is made of a digest counts for none: clients name signatures so, and
lists of referrers (distribution-spec v1.1, "Referrers Tag Schema"). It goes with the manifest of that digest.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pagepool.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

DEFAULT_GRACE_S = 24 * 3600.0
DEFAULT_UNTAGGED_S = 7 * 24 * 3600.0
# Of a longer digest the scheme takes the first 64 letters. Behind it: `.sig`, `.att`, `.sbom`, or what a client likes.
_DIGEST_TAG = re.compile(r"(sha(?:256|512)-[0-9a-f]{64})(?:\..+)?")


@dataclass(frozen=True, slots=True)
class TagRule:
    """How many tags repositories keep whose names match a pattern (`*`, `?`, `[...]`); 0: all."""

    pattern: str
    most: int


@dataclass(frozen=True, slots=True)
class Policy:
    """What collection may take.

    Args:
        grace_s: a blob that no manifest of the repository needs stays for so long after it came there, or a client
            asked for it last. A client that has pushed or found its blobs has this long to push their manifest.
        untagged_s: a manifest without a tag, that no index lists and that is about nothing that is kept, stays for so
            long after it was pushed, lost its last tag, or was pulled by its digest; None: for ever.
        tags: the first rule that matches a repository counts; without one it keeps all its tags.
    """

    grace_s: float = DEFAULT_GRACE_S
    untagged_s: float | None = DEFAULT_UNTAGGED_S
    tags: tuple[TagRule, ...] = ()

    def most_tags(self, repository: str) -> int:
        """How many tags a repository keeps; 0: all."""
        return next((rule.most for rule in self.tags if fnmatchcase(repository, rule.pattern)), 0)


@dataclass(frozen=True, slots=True)
class ManifestFacts:
    """What has to be known of a manifest. Digests are keys.

    Args:
        since_ns: when it came to the repository, or was asked for last.
        children: manifests that an index lists.
        subject: what it is about, or b"".
        blobs: what it needs beside manifests.
    """

    since_ns: int
    children: tuple[bytes, ...] = ()
    subject: bytes = b""
    blobs: tuple[bytes, ...] = ()


def find_attached(tags: Mapping[str, bytes], manifests: Iterable[bytes]) -> dict[str, bytes]:
    """The tags that are made of the digest of another of a repository's manifests.

    Args:
        tags: names, and the keys of the manifests that they point to.
        manifests: the keys of all manifests.

    Returns:
        the key of the manifest that is named so, by tag.
    """
    named = {tag: parts[1] for tag in tags if (parts := _DIGEST_TAG.fullmatch(tag))}
    if not named:
        return {}
    digests = {f"{digest.algorithm}-{digest.hex[:64]}": digest.key for digest in map(Digest.from_key, manifests)}
    found = {tag: digests[subject] for tag, subject in named.items() if subject in digests}
    return {tag: subject for tag, subject in found.items() if tags[tag] != subject}


def plan_expiry(tags: Mapping[str, int], most: int, attached: Collection[str]) -> set[str]:
    """Which tags go by their number. Those that are made of digests are no versions, and take no place of any.

    Args:
        tags: names, and when each was pushed last.
        most: how many stay, and how many beside them that are made of digests of nothing in the repository: it may be
            there for the signatures of others. 0 for all.
        attached: those that go with a manifest.
    """
    strange = {tag for tag in tags if tag not in attached and _DIGEST_TAG.fullmatch(tag)}
    versions = [(tag, since) for tag, since in tags.items() if tag not in attached and tag not in strange]
    return plan_tags(versions, most) | plan_tags([(tag, tags[tag]) for tag in strange], most)


def plan_tags(tags: Iterable[tuple[str, int]], most: int) -> set[str]:
    """Which tags go, so that the newest `most` stay.

    Args:
        tags: names, and when each was pushed last.
        most: 0 for all.
    """
    if not most:
        return set()
    newest = sorted(tags, key=lambda tag: (-tag[1], tag[0]))
    return {name for name, _ in newest[most:]}


def plan_manifests(
    facts: Mapping[bytes, ManifestFacts],
    tagged: Iterable[bytes],
    untagged_since_ns: int | None,
    attached: Iterable[tuple[bytes, bytes]] = (),
) -> tuple[dict[bytes, str], Counter[str]]:
    """Which manifests of a repository stay, and why.

    Args:
        facts: of each manifest of the repository.
        tagged: those that tags point to.
        untagged_since_ns: one without a tag stays if it is of this time or newer; None: always.
        attached: pairs of a manifest and one that stays with it, as a referrer does.

    Returns:
        the reason of each that stays, and how many there are for each reason.
    """
    referrers: dict[bytes, list[bytes]] = {}
    for digest, found in facts.items():
        if found.subject:
            referrers.setdefault(found.subject, []).append(digest)
    for subject, digest in attached:
        referrers.setdefault(subject, []).append(digest)
    kept: dict[bytes, str] = {digest: "tag" for digest in tagged if digest in facts}
    _follow(kept, list(kept), facts, referrers)
    young = [
        digest
        for digest, found in facts.items()
        if digest not in kept and (untagged_since_ns is None or found.since_ns >= untagged_since_ns)
    ]
    kept |= dict.fromkeys(young, "untagged, in its time")
    _follow(kept, young, facts, referrers)
    return kept, Counter(kept.values())


def _follow(
    kept: dict[bytes, str],
    waiting: list[bytes],
    facts: Mapping[bytes, ManifestFacts],
    referrers: Mapping[bytes, Sequence[bytes]],
) -> None:
    """Keep what those that wait need, and what is about them."""
    while waiting:
        digest = waiting.pop()
        found = facts[digest]
        near = [(child, "index") for child in found.children]
        near += [(one, "referrer") for one in referrers.get(digest, ())]
        near += [(found.subject, "subject of a referrer")] if found.subject else []
        for other, reason in near:
            if other in facts and other not in kept:
                kept[other] = reason
                waiting.append(other)
