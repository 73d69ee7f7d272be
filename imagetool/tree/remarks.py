"""Remarks about parts of an image that a disk does not have, or has changed: one for each reason."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rootdisk.errors import BadInput
from rootdisk.oci.fields import Fields
from rootdisk.text import one_line

TEXT_MAX = 4096
TIMES_MAX = 1 << 32
REMARKS_MAX_COUNT = 1000


class Remark(NamedTuple):
    """A line for the user. `times` says how many things of `kind` were changed or left out; "" and 0 if there are none."""

    text: str
    kind: str = ""
    times: int = 0

    @classmethod
    def parse(cls, value: Fields) -> Remark:
        """Read what `to_json` wrote.

        Raises:
            BadInput: A field is wrong.
        """
        return cls(
            value.text("text", limit=TEXT_MAX), value.text("kind", "", limit=16), value.integer("times", 0, TIMES_MAX)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the value for a receipt."""
        return self._asdict()


def counts(remarks: Iterable[Remark]) -> dict[str, int]:
    """Return how many times each kind was left out; nothing that was not."""
    found: dict[str, int] = {}
    for remark in remarks:
        if remark.kind:
            found[remark.kind] = found.get(remark.kind, 0) + remark.times
    return dict(sorted(found.items()))


def show(remarks: Iterable[Remark], what: str) -> None:
    """Write each remark to standard error, one line each, behind `what`."""
    for remark in remarks:
        print(one_line(f"{what}: {remark.text}"), file=sys.stderr, flush=True)


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
