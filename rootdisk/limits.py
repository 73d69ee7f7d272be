"""Limits of Linux that several formats share; include/uapi/linux/limits.h, include/linux/namei.h.

A limit of one format is with that format: rootdisk/artifact/format.py, rootdisk/oci/documents.py, rootdisk/ext4/format.py.
"""

from __future__ import annotations

NAME_MAX = 255  # bytes of one name
PATH_MAX = 4096  # bytes of a path that the kernel takes at once, with its NUL
LINKS_MAX = 40  # MAXSYMLINKS: symbolic links on one path
LONG_PATH_MAX = 16 * PATH_MAX  # what we take of a path in an archive or on a disk, which may be opened part by part
SMALL_FILE_MAX_BYTES = 1 << 20  # a file of words, such as --env-file

ALLOW_MAX_COUNT, ALLOW_MAX = 1000, 300  # rules of --allow and their characters; a name has 253 at most
