"""Removing artifacts from the store by name: `runner rmi`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from rootdisk.errors import BadInput, Busy
from rootdisk.oci.documents import Digest
from rootdisk.oci.reference import parse_reference
from rootdisk.text import printable
from runner.sandbox import lookup, snapshots
from runner.sandbox.state import Unreadable
from runner.store import filling
from runner.store.images import Image, images
from runner.store.names import absolute
from runner.store.store import Store

_DIGEST_MIN = 8  # characters of a digest that name an artifact


def find(known: Sequence[Image], text: str, platform: str | None) -> list[Image]:
    """Return those of `known` that `text` means: a name, all platforms of it; or a digest, all names of it. BadInput if none."""
    known = [image for image in known if platform is None or image.platform == platform]
    digest = text.removeprefix("sha256:").lower()
    if len(digest) >= _DIGEST_MIN and not set(digest) - set("0123456789abcdef"):
        matching = [image for image in known if image.digest.startswith(digest)]
        if len({image.digest for image in matching}) > 1:
            raise BadInput(f"{printable(text, 80)} names several artifacts", "write more of the digest: runner images")
        if matching:
            return matching
    reference = str(absolute(parse_reference(text)))
    matching = [image for image in known if image.reference == reference]
    if not matching:
        raise BadInput(f"{printable(reference)} is not in the store", "see runner images")
    return matching


def remove(store: Store, chosen: list[Image], *, force: bool) -> tuple[list[str], int]:
    """Remove names, and content that no other name or sandbox needs. Return lines that say what was done, and the bytes freed.

    Busy if a sandbox needs one of them, or it is being fetched, and not `force`.
    """
    digests = {image.digest for image in chosen}
    names = {image.name for image in chosen}
    others = [image for image in images(store) if image.name not in names or image.name is None]
    kept = {file for image in others if image.digest not in digests or image.name is not None for file in image.files}
    named = {image.digest for image in others if image.name is not None}
    gone = [image for image in chosen if image.digest not in named]
    if not force:
        _refuse_used(store, gone)
    for image in gone:
        if not image.is_complete:
            _end_fetch(store, image, force=force)
    done = []
    for image in chosen:
        if image.name is not None:
            image.untag(store)
            done.append(f"untagged {printable(image.reference)}")
    freed = 0
    for image in {image.digest: image for image in chosen}.values():
        removed = 0
        for digest in image.files:
            if digest not in kept:
                removed += _remove(store, digest)
        if removed:
            done.append(f"removed sha256:{image.digest}")
            freed += removed
    return done, freed


def _refuse_used(store: Store, chosen: list[Image]) -> None:
    sandboxes = list(lookup.all_of(store)) if chosen else []
    for image in chosen:
        for sandbox in sandboxes:
            name = printable(sandbox.name)
            if isinstance(sandbox, Unreadable):
                raise Busy(f"sandbox {name} cannot be read, and may need it: {sandbox.reason}", sandbox.remedy)
            if set(image.files) & sandbox.uses:
                what = printable(image.reference) or image.digest[:12]
                raise Busy(f"sandbox {name} needs {what}", f"runner rm {'--force ' if sandbox.running else ''}{name}")
        for snapshot in snapshots.all_of(store) if chosen else ():
            name = printable(snapshot.name)
            remedy = f"runner rm --snapshot {name}"
            if isinstance(snapshot, snapshots.Unreadable):
                raise Busy(f"snapshot {name} cannot be read, and may need it: {snapshot.reason}", remedy)
            if set(image.files) & snapshot.state.uses:
                what = printable(image.reference) or image.digest[:12]
                raise Busy(f"snapshot {name} needs {what}", remedy)


def _end_fetch(store: Store, image: Image, *, force: bool) -> None:
    """End the fill of a disk that no sandbox uses. Refuse without `force`."""
    digest = Digest("sha256", image.disk)
    if force:
        filling.end(store, digest)
        return
    try:
        with store.unless_made(image.disk):
            return
    except Busy as err:
        what = printable(image.reference) or image.digest[:12]
        is_filled = filling.status(store, digest) is not None
        remedy = f"to end that: runner rmi --force {what}" if is_filled else "wait until it is complete"
        raise Busy(f"{what} is being fetched", remedy) from err


def _remove(store: Store, digest: str) -> int:
    """Remove what the hex digest names, unless a sandbox needs it or somebody uses it just now; return the freed bytes."""
    paths = [store.root / "disks" / f"{digest}{suffix}" for suffix in (".raw", ".partial", ".chunks")]
    freed = 0
    with contextlib.suppress(Busy), store.removing(digest):
        needed = snapshots.needed_by_all(store)  # now that nobody can begin to use it
        if needed is None or digest in needed:
            return 0
        for path in (*paths, store.root / "blobs" / digest):  # a disk before its index
            with contextlib.suppress(FileNotFoundError):
                freed += path.lstat().st_blocks * 512
                path.unlink()
        store.unmark(digest)
    return freed
