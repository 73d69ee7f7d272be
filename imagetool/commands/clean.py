"""The command `clean`."""

from __future__ import annotations

import argparse
import os

from imagetool.commands import options as option_values
from rootdisk.cli.rows import write_rows
from rootdisk.text import one_line


def clean_command(options: argparse.Namespace) -> int:
    """Empty the user's cache."""
    from imagetool.build import cleaning
    from rootdisk.system import locks

    cache = option_values.find_user_cache()
    lock = locks.take(cache / ".lock", timeout_s=0, what=f"the cache {cache}", doing="imagetool clean")
    try:
        found = cleaning.entries(cache, (*cleaning.SHARED, "verify-*"))
        for entry in found:
            if not options.dry_run:
                cleaning.remove(entry)
            if not options.json:
                how = "would remove" if options.dry_run else "removed"
                print(one_line(f"{how} {entry.path}; {entry.size / 1e6:.2f} MB"))
    finally:
        os.close(lock)
    if options.json:
        write_rows({"path": str(entry.path), "bytes": entry.size} for entry in found)
    else:
        total = sum(entry.size for entry in found) / 1e6
        how = "would be freed" if options.dry_run else "freed"
        print(one_line(f"{total:.2f} MB {how}" if found else f"nothing to remove from {cache}"))
    return 0
