"""What of an image a disk does not have, or has otherwise than the image says: one remark for each reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rootdisk.errors import BadInput

KINDS = ("acl", "time", "xattr")  # of what is counted in an artifact's config


class Remark(NamedTuple):
    """One line for the user, about so many files; `files` is 0 and `kind` "" if it is about none."""

    text: str
    kind: str = ""
    files: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the value for a receipt."""
        return self._asdict()


def counts(remarks: Iterable[Remark]) -> dict[str, int]:
    """Return how many times each kind was left out; nothing that was not."""
    found: dict[str, int] = {}
    for remark in remarks:
        if remark.kind:
            found[remark.kind] = found.get(remark.kind, 0) + remark.files
    return dict(sorted(found.items()))


def in_words(left_out: Mapping[str, int]) -> str:
    """Return the counts for a summary: "2 xattr, 1 time changed or left out"; "" if there are none."""
    if not left_out:
        return ""
    return ", ".join(f"{count} {kind}" for kind, count in left_out.items()) + " changed or left out"


def refuse(remarks: Iterable[Remark]) -> None:
    """Refuse what `--strict` does not allow.

    Raises:
        BadInput: There is a remark. The message is the first.
    """
    for remark in remarks:
        raise BadInput(f"strict: {remark.text}", "change the image, or build without --strict")
