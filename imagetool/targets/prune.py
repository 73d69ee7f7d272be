"""Choose the tags to remove from a repository of artifacts.

These are old versions, key tags that no remaining version uses, and files attached to either. Artifacts have no dates, so
versions are sorted by name: 1.9 comes before 1.10.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from rootdisk.artifact.format import KEY_TAG_DIGITS, KEY_TAG_PREFIX
from rootdisk.oci.documents import Digest
from rootdisk.oci.referrers import belongs_to_digest, referrers_tag, signatures_tag

_KEY = re.compile(rf"{KEY_TAG_PREFIX}[0-9a-f]{{{KEY_TAG_DIGITS}}}\Z")


def outdated(
    tags: Mapping[str, Digest], children: Callable[[Digest], Collection[Digest]], keep: int | None
) -> list[str]:
    """Return the tags to remove, sorted: all but the last `keep` versions, and unused key tags.

    If `keep` is None, no version is removed. `children` returns the manifests of an index. A manifest that a remaining version
    needs is never removed.
    """
    attached = {tag for tag in tags if belongs_to_digest(tag)}
    versions = sorted((tag for tag in tags.keys() - attached if not _KEY.match(tag) and tag != "latest"), key=_natural)
    dropped = set(versions[: max(len(versions) - keep, 0)]) if keep is not None else set()
    needed: set[Digest] = set()
    for tag in tags.keys() - dropped - attached:
        if not _KEY.match(tag):
            needed |= {tags[tag], *children(tags[tag])}
    removed = {tag for tag in tags if (tag in dropped or _KEY.match(tag)) and tags[tag] not in needed}
    return sorted(
        removed | (attached & {name(tags[tag]) for tag in removed for name in (referrers_tag, signatures_tag)})
    )


def _natural(tag: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", tag) if part]
