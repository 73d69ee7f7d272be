"""Runs a target in a process of its own, and says what it found."""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.run import NOW
from tests.support.commands import ROOT

STILL_S = 60  # without a new input: it hangs without using the processor, or where no signal is heard


class Outcome(NamedTuple):
    """`count` inputs, of which `refused` ended in an error of ours; `faults` says what must not be, one text each."""

    count: int  # type: ignore[assignment]
    refused: int
    faults: list[str]


def is_guided() -> bool:
    return importlib.util.find_spec("atheris") is not None


def run(target: str, folder: Path, *, seconds: float = 0, count: int = 0, seed: int = 0) -> Outcome:
    """The target's seeds, kept inputs and then others, in `folder`: `count` that are always the same, or for `seconds`."""
    folder.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "tests.fuzz.run", target, str(folder)]
    argv += ["--seconds", str(seconds), "--count", str(count), "--seed", str(seed)]
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as work, (folder / "log").open("wb") as log:
        env = {**os.environ, "TMPDIR": work, "HOME": work, "MALLOC_ARENA_MAX": "2", "PYTHONHASHSEED": "0"}
        child = subprocess.Popen(argv, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            stood = _watch(child, folder / "now")
        finally:
            child.kill()
            child.wait()
    return _outcome(folder, child.returncode, stood)


def _watch(child: subprocess.Popen[bytes], path: Path) -> bool:
    """Wait for its end; whether it stood still."""
    last, since = b"", time.monotonic()
    while True:
        try:
            child.wait(0.2)
            return False
        except subprocess.TimeoutExpired:
            head = path.read_bytes()[: NOW.size] if path.exists() else b""
        if head != last:
            last, since = head, time.monotonic()
        elif time.monotonic() - since > STILL_S:
            return True


def _outcome(folder: Path, status: int, stood: bool) -> Outcome:
    found = folder / "faults.json"
    faults = [_text(item) for item in json.loads(found.read_text())] if found.exists() else []
    path = folder / "now"
    if not path.exists():
        return Outcome(0, 0, [f"it does not start: {(folder / 'log').read_text(errors='replace')[-3000:]}"])
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as now:
        count, refused, length = NOW.unpack_from(now)
        data = now[NOW.size : NOW.size + length]
    if stood or status:
        what = f"stands still for {STILL_S} s" if stood else f"ends with {status}"
        log = (folder / "log").read_text(errors="replace")[-3000:]
        faults.append(f"{what}\n{log}\ninput: {data.hex()}")
    return Outcome(count, refused, faults)


def _text(fault: dict[str, str]) -> str:
    return f"{fault['kind']} at {fault['place']}\n{fault['text']}\ninput: {fault['input']}"
