"""`doit clean`: remove what builds have made in a project's cache, and say what it was and how many bytes.

`doit clean` removes everything of all images, `doit clean build:NAME` what belongs to one. What was published stays, also a layout
in the cache, and so does every file that has no name of ours.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from doit.action import PythonAction

from imagetool.build import cleaning
from imagetool.config.images import Image
from imagetool.guest.programs import VMLINUX_KEPT
from imagetool.tasks.places import DISK, Places
from rootdisk.text import describe_error, one_line

# In cache/NAME: receipts, the link to the disk, boot files, rests of checks, what reproduce has made.
OF_IMAGE = ("*.json", DISK, "vmlinuz", "vmlinux", VMLINUX_KEPT, "initramfs", ".check-*", f".{DISK}.*", "reproduce")
SHARED = (*cleaning.SHARED, "report.json", "report.md", "graph.svg")


_is_done = False


class Clean(PythonAction):  # type: ignore[misc]
    """The action of `doit clean`; doit shows what it is called."""

    def __init__(self, places: Places, images: Sequence[Image], *, everything: bool) -> None:
        super().__init__(clean, [places, images, everything])

    def __str__(self) -> str:
        """Return what doit prints."""
        return "remove what was built"


def clean(places: Places, images: Sequence[Image], everything: bool, dryrun: bool = False) -> None:
    """Remove what was built for `images`, and with `everything` what they share, or only say so."""
    global _is_done
    if _is_done:  # `doit clean` has cleaned everything, and goes on with each image
        return
    _is_done = everything
    folders = [
        folder
        for image in images
        for folder in (places.of(image), *([places.index(image).parent] if image.group else []))
    ]
    shared = cleaning.entries(places.cache, SHARED) if everything else _own_disks(places, images)
    lines = [(f"{_shown(places, folder)}/", cleaning.entries(folder, OF_IMAGE)) for folder in dict.fromkeys(folders)]
    lines += [(_shown(places, entry.path), [entry]) for entry in shared]
    total = 0
    for name, entries in lines:
        if not entries:
            continue
        try:
            for entry in entries if not dryrun else ():
                cleaning.remove(entry)
        except OSError as err:
            sys.exit(f"doit: {one_line(describe_error(err))}: fix its owner and permissions")
        size = sum(entry.size for entry in entries)
        total += size
        what = f"{name}: {', '.join(entry.path.name for entry in entries)}" if name.endswith("/") else name
        print(one_line(f"{'would remove' if dryrun else 'removed'} {what}; {size / 1e6:.2f} MB"))
        if not dryrun and name.endswith("/"):
            with contextlib.suppress(OSError):  # something of somebody else is in it
                entries[0].path.parent.rmdir()
    print(
        f"{total / 1e6:.2f} MB {'would be freed' if dryrun else 'freed'}"
        if any(entries for _, entries in lines)
        else "nothing to remove"
    )
    for image in images:
        for place in image.publish:
            if place.path is not None and place.path.absolute().is_relative_to(places.cache.absolute()):
                print(one_line(f"{_shown(places, place.path)} stays: {image.name} was published there"))


def _shown(places: Places, path: Path) -> str:
    return os.path.relpath(path, places.cache.parent)


def _own_disks(places: Places, images: Sequence[Image]) -> list[cleaning.Entry]:
    """Return the packed disks that only `images` have a link to."""
    own = {places.disk(image) for image in images}
    links = {link: link.resolve() for link in places.cache.glob(f"*/{DISK}") if link.is_symlink()}
    others = {target for link, target in links.items() if link not in own}
    disks = {links[link] for link in own if link in links} - others
    root = (places.cache / "disks").resolve()
    return [entry for disk in sorted(disks) if disk.parent == root for entry in cleaning.entries(root, (disk.name,))]


def remove_rests(folder: Path) -> None:
    """Remove what checks that were killed have left in an image's directory; only one run at a time works there."""
    for entry in cleaning.entries(folder, (".check-*",)):
        with contextlib.suppress(OSError):
            cleaning.remove(entry)
