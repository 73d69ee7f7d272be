"""doit's own records, cache/doit.sqlite3: what is damaged is made again, as receipts are. doit would end with a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path

from imagetool.receipts import Damaged, made_again
from rootdisk.durable import open_file
from rootdisk.errors import RootdiskError


def check(path: Path, *, replace: bool) -> None:
    """Read the records at `path` whole. If they are damaged and `replace`, remove them: then every task is looked at again.

    Raises:
        RootdiskError: They are damaged, and not to be replaced or not a file.
    """
    try:
        _check(path)
    except Damaged as err:
        if not replace:
            raise
        made_again(err)
        try:
            path.unlink()
        except OSError as failed:
            raise RootdiskError(f"{path}: {failed.strerror}", "remove it") from failed
        # A journal of the old file would be played back into the new one.
        for suffix in ("-journal", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _check(path: Path) -> None:
    try:
        os.close(open_file(path))
    except FileNotFoundError:
        return
    except OSError as err:
        raise Damaged(f"{path}: {err.strerror}", "doit build makes it again") from err
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            ((verdict,),) = database.execute("pragma quick_check(1)").fetchall()
            tables = database.execute("select name from sqlite_master where type = 'table'").fetchall()
            rows = database.execute("select task_id, task_data from doit").fetchall() if tables else []
        if verdict == "ok" and all(isinstance(json.loads(data), dict) for _, data in rows):
            return
    except sqlite3.Error as err:
        if getattr(err, "sqlite_errorname", "").startswith("SQLITE_BUSY"):  # doit waits for it, too
            return
    except (ValueError, TypeError, RecursionError):
        pass
    raise Damaged(f"{path} is damaged", "doit build makes it again")
