"""Choose the tags to remove from a repository of artifacts.

These are old versions, key tags that no remaining version uses, and files attached to either. Versions are sorted by the time
they were published, if the place records it: our OCI layouts do, and some registries. Those without a time are older, sorted by
their numbers: 1.9, then 1.10-rc1, then 1.10. If a tag has neither, such as a commit's hash, nobody can say how old it is:
it stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

from rootdisk.artifact.format import KEY_TAG_DIGITS, KEY_TAG_PREFIX
from rootdisk.oci.documents import Digest
from rootdisk.oci.referrers import belongs_to_digest, referrers_tag, signatures_tag

_PRE_RELEASES = {
    **dict.fromkeys(("dev", "snapshot", "nightly"), 0),
    **dict.fromkeys(("a", "alpha"), 1),
    **dict.fromkeys(("b", "beta"), 2),
    **dict.fromkeys(("c", "rc", "pre", "preview"), 3),
}
_WORDS = "|".join(sorted(_PRE_RELEASES, key=len, reverse=True))
# Numbers, and perhaps a pre-release: what comes after them does not say which is older.
_NUMBER = re.compile(rf"v?\d+(?:[._-]\d+)*(?:[._+-]?(?:{_WORDS})[._-]?\d*)?(?=[._+-]|\Z)", re.ASCII | re.IGNORECASE)
_KEY = re.compile(rf"{KEY_TAG_PREFIX}[0-9a-f]{{{KEY_TAG_DIGITS}}}\Z")


def outdated(
    tags: Mapping[str, Digest],
    children: Callable[[Digest], Collection[Digest]],
    keep: int | None,
    published: Mapping[str, float] = MappingProxyType({}),
) -> list[str]:
    """Choose the tags to remove, sorted: all but the last `keep` versions (None: no version), and keys of what is left unused.

    `children` gives what an index lists, `published` when a tag was written, seconds, as far as that is recorded. No tag is
    named whose manifest a version that stays needs, and none whose age is not known.
    """
    attached = {tag for tag in tags if belongs_to_digest(tag)}
    dropped = _oldest(versions(tags) - unordered(tags, published), keep, published) if keep is not None else set()
    needed: set[Digest] = set()
    for tag in tags.keys() - dropped - attached:
        if not _KEY.match(tag):
            needed |= {tags[tag], *children(tags[tag])}
    gone = {tag for tag in tags if (tag in dropped or _KEY.match(tag)) and tags[tag] not in needed}
    return sorted(gone | (attached & {name(tags[tag]) for tag in gone for name in (referrers_tag, signatures_tag)}))


def versions(tags: Iterable[str]) -> set[str]:
    """Return the tags that people have chosen: no keys, no attachments, and not `latest`."""
    return {tag for tag in tags if not belongs_to_digest(tag) and not _KEY.match(tag) and tag != "latest"}


def unordered(tags: Iterable[str], published: Mapping[str, float]) -> set[str]:
    """Return the versions whose age is not known: no time is recorded, and they are not numbers."""
    return {tag for tag in versions(tags) if tag not in published and not _NUMBER.match(tag)}


def _oldest(tags: Iterable[str], keep: int, published: Mapping[str, float]) -> set[str]:
    """Return all but the last `keep` of `tags`. A tag without a time is kept too if it has the same number as a kept one."""

    def rank(tag: str) -> tuple[float, list[tuple[int, int, str]]]:
        """Return a sort key that is equal for tags whose order is not known."""
        number = _NUMBER.match(tag)
        return published.get(tag, 0.0), version_order(number[0] if number and tag not in published else tag)

    ordered = sorted(tags, key=lambda tag: (rank(tag), version_order(tag)))
    kept = ordered[max(len(ordered) - keep, 0) :]
    return {tag for tag in ordered[: len(ordered) - len(kept)] if rank(tag) < rank(kept[0])}


def version_order(tag: str) -> list[tuple[int, int, str]]:
    """Make a key to sort versions by: numbers by value, a pre-release before its release, anything else after it."""
    key: list[tuple[int, int, str]] = []
    for number, word in re.findall(r"([0-9]+)|([^\W\d_]+)", tag.lower()):
        if number:
            digits = number.lstrip("0")  # longer is larger; int() refuses thousands of digits
            key.append((3, len(digits), digits))
        elif key and word in _PRE_RELEASES:
            key.append((0, _PRE_RELEASES[word], ""))
        elif key or word != "v":
            key.append((2, 0, word))
    return [*key, (1, 0, "")]
