"""The old name of imagetool.tasks, for copies of dodo.py from before 0.2. It goes with the release after that."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from imagetool.build import receipts
from imagetool.config.images import Image
from imagetool.receipts import Receipt
from imagetool.tasks import actions, uptodate
from imagetool.tasks.actions import (
    check,
    demo,
    disk,
    explain,
    graph,
    index,
    init,
    kernel,
    pack,
    publish,
    report,
    reproduce,
    resolve,
)
from imagetool.tasks.places import Places, lock, make_cache
from imagetool.tasks.uptodate import disk_is_there, init_is_whole, kernel_is_whole

__all__ = [
    "SOURCE_RECEIPT",
    "Places",
    "check",
    "demo",
    "disk",
    "disk_is_there",
    "explain",
    "graph",
    "index",
    "init",
    "init_is_whole",
    "kernel",
    "kernel_is_whole",
    "lock",
    "make_cache",
    "pack",
    "prune",
    "publish",
    "receipt_is_whole",
    "report",
    "reproduce",
    "resolve",
]

if not sys.warnoptions:  # Python shows it only for __main__ by default, and doit imports dodo.py
    warnings.filterwarnings("default", message="this dodo.py is of an older", category=DeprecationWarning)
warnings.warn(
    "this dodo.py is of an older rootdisk: put `from imagetool.tasks.dodo import *` in its place",
    DeprecationWarning,
    stacklevel=2,
)

SOURCE_RECEIPT = 2


def prune(places: Places, image: Image, delete: bool = False, keep: int = 0) -> object:
    """List or remove what may go from the image's targets; `keep` 0 keeps all versions."""
    return actions.prune(places, image, {"delete": delete, "keep": str(keep or "")})


_KINDS: dict[str, type[Receipt]] = {
    "source": receipts.SourceReceipt,
    "artifact": receipts.ArtifactReceipt,
    "published": receipts.PublishedReceipt,
}


def receipt_is_whole(task: object, values: object, path: str) -> bool:
    """Return whether a receipt is as it was written, and of this version."""
    return uptodate.receipt_is_whole(task, values, path, _KINDS[Path(path).stem])
