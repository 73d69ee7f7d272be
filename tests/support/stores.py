"""Processes of a store: started, and found. What its files have in them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rootdisk.durable import data_runs
from tests.support.commands import ROOT
from tests.support.processes import open_files


def of_store(store: Path) -> list[int]:
    """Every process of this store: by its environment, or by the files it has open."""
    mark = f"ROOTDISK_STORE={store}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if mark in (process / "environ").read_bytes().split(b"\0") or any(
                name.startswith(f"{store}/") for name in open_files(process.name).values()
            ):
                found.append(int(process.name))
    return [pid for pid in found if pid != os.getpid()]


def templates(store: Path) -> list[Path]:
    """Return the directories of the templates in the store."""
    return [path.parent for path in (store / "templates").glob("[!.]*/template.json")]


def start(store: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "runner", *arguments],
        env={**os.environ, "ROOTDISK_STORE": str(store), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def contents(store: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield each regular file in `store` and its bytes without holes. What goes meanwhile, as a template that is made, is left out."""
    for folder, _, names in os.walk(store):
        for name in names:
            path = Path(folder, name)
            try:
                if not path.is_file():
                    continue
                with path.open("rb") as file:
                    parts = [os.pread(file.fileno(), end - start, start) for start, end in data_runs(file.fileno())]
            except FileNotFoundError:
                continue
            yield path, b"".join(parts)
