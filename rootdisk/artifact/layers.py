"""The image layer that a file on the disk comes from, by its inode number; and counts of what is missing on the disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from rootdisk.oci.fields import Fields
from rootdisk.text import printable

LAYERS_MAX_COUNT = 10_000


class LayerInodes(NamedTuple):
    """A layer's inodes on the disk: from `first` up to the next layer's. The root belongs to no layer."""

    diff_id: str
    first: int


def layer_of(layers: Sequence[LayerInodes], inode: int) -> str:
    """Return the diff ID of the layer that an inode comes from, or "" if unknown."""
    place = bisect_right([layer.first for layer in layers], inode) - 1
    return layers[place].diff_id if place >= 0 else ""


def layers_of(disk: Fields) -> tuple[LayerInodes, ...]:
    """Parse the config's `layers` of a disk. BadInput names what is wrong."""
    return tuple(
        LayerInodes(layer.text("diff_id", limit=256), layer.integer("first_inode", 0, (1 << 32) - 1))
        for layer in disk.objects("layers", LAYERS_MAX_COUNT, [])
    )


def left_out(disk: Fields) -> dict[str, int]:
    """Parse the counts, by kind, of what a disk could not take over from its image. BadInput names what is wrong."""
    if disk.value.get("left_out") is None:
        return {}
    kinds = disk.inner("left_out")
    if len(kinds.value) > 16:
        raise disk.wrong("left_out", f"{len(kinds.value)} entries are more than the 16 allowed")
    return {printable(kind, 64): kinds.integer(kind, 0, (1 << 32)) for kind in kinds.value}
