"""Files that this process has hashed and synced: unless one has changed since, it need not be read again to be published.

A file is known by its device, inode, size and the time when its data was written last; every write sets that time. Another
process knows nothing, and reads. This finds accidents: the published blob is a hard link, so a user who can write to the file and
set its time can also change it later.
"""

from __future__ import annotations

import os
import time

from rootdisk.oci.documents import Descriptor, Digest

# How coarse a file system's clock may be: a second change within that time would not be seen. Some count whole seconds.
_TICK_NS, _SECOND_NS = 10_000_000, 1_000_000_000

_known: dict[tuple[int, int], tuple[int, int, Digest]] = {}


def note(fd: int, digest: Digest) -> None:
    """Note that all bytes of the file `fd` were hashed and synced; its next change would be seen, or it is not noted."""
    info = os.fstat(fd)
    coarse_ns = _TICK_NS if info.st_mtime_ns % _SECOND_NS else 2 * _SECOND_NS
    if info.st_mtime_ns + coarse_ns < time.time_ns():
        _known[info.st_dev, info.st_ino] = info.st_size, info.st_mtime_ns, digest


def is_known(fd: int, descriptor: Descriptor) -> bool:
    """Return whether the file `fd` is the blob `descriptor`, synced, without reading it."""
    info = os.fstat(fd)
    found = _known.get((info.st_dev, info.st_ino))
    return found == (info.st_size, info.st_mtime_ns, descriptor.digest) and info.st_size == descriptor.size
