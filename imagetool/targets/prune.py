"""Choose the tags to remove from a repository of artifacts.

These are old versions, key tags that no remaining version uses, and files attached to either. Versions are sorted by the time
they were published, if the place records it: our OCI layouts do, registries do not. Those without a time are older, sorted by
their numbers: 1.9, then 1.10-rc1, then 1.10.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
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
_KEY = re.compile(rf"{KEY_TAG_PREFIX}[0-9a-f]{{{KEY_TAG_DIGITS}}}\Z")


def outdated(
    tags: Mapping[str, Digest],
    children: Callable[[Digest], Collection[Digest]],
    keep: int | None,
    published: Mapping[str, float] = MappingProxyType({}),
) -> list[str]:
    """Choose the tags to remove, sorted: all but the last `keep` versions (None: no version), and keys of what is left unused.

    `children` gives what an index lists, `published` when a tag was written, seconds, as far as that is recorded. No tag is
    named whose manifest a version that stays needs.
    """
    attached = {tag for tag in tags if belongs_to_digest(tag)}
    versions = [tag for tag in tags.keys() - attached if not _KEY.match(tag) and tag != "latest"]
    versions.sort(key=lambda tag: (published.get(tag, 0.0), version_order(tag)))
    dropped = set(versions[: max(len(versions) - keep, 0)]) if keep is not None else set()
    needed: set[Digest] = set()
    for tag in tags.keys() - dropped - attached:
        if not _KEY.match(tag):
            needed |= {tags[tag], *children(tags[tag])}
    gone = {tag for tag in tags if (tag in dropped or _KEY.match(tag)) and tags[tag] not in needed}
    return sorted(gone | (attached & {name(tags[tag]) for tag in gone for name in (referrers_tag, signatures_tag)}))


def version_order(tag: str) -> list[tuple[int, int, str]]:
    """Make a key to sort versions by: numbers by value, a pre-release before its release, anything else after it."""
    key: list[tuple[int, int, str]] = []
    for number, word in re.findall(r"(\d+)|([^\W\d_]+)", tag.lower()):
        if number:
            key.append((3, int(number), ""))
        elif key and word in _PRE_RELEASES:
            key.append((0, _PRE_RELEASES[word], ""))
        elif key or word != "v":
            key.append((2, 0, word))
    return [*key, (1, 0, "")]
