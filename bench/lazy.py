"""`runner boot --pull lazy` on an empty store beside a warm boot and beside `--pull missing`, over two slow links.

The artifact is measured as it is, and with a boot trace of itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench import guest, peers
from bench.link import link
from bench.measure import Contender, Failed, Measured
from bench.peers import Missing
from bench.project import Project
from bench.rows import Row
from bench.transfer import artifact_of
from bench.work import TOOL, Bench, clean
from rootdisk.artifact.format import ChunkIndex
from rootdisk.artifact.published import open_artifact
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.store import filling
from runner.store.store import Store
from tests.support.nbd import server_of

LINKS = {"100 MB/s, 20 ms": (100e6, 0.01), "12 MB/s, 40 ms": (12e6, 0.02)}  # bytes a second, delay each way
WARM_S = 0.5  # what a lazy boot may take beyond a warm one
GOALS = {"100 MB/s, 20 ms": (1.25, 0.6), "12 MB/s, 40 ms": (0.0, 0.25)}
SHARE = 0.15  # of the blobs, fetched at the first output
WATCH_S = 0.02


def rows(bench: Bench, image: Path, small: bool) -> list[Row]:
    """Return the rows of both links, and of what is fetched without a fill. A `small` image has its own program only."""
    store, room = bench.work / "store", bench.work / "lazy"
    room.mkdir()
    words = _Words() if small else _Words(("--entrypoint", "/usr/bin/python3"), ("--", "-c", "pass"))
    try:
        if small:
            guest.reference(bench, room)
        artifact = room / "artifact" if small else artifact_of(bench, image)
        with peers.registry(bench.work / "registry", artifact, "1") as registry:
            with _ended(store):
                last = _fetched(bench, words, store, f"{registry.name}/app:1", room / "reads")
            if not small:
                _publish_traced(bench, image, artifact, room, f"{registry.name}/app:traced")
            found = [
                row
                for name, (rate, delay) in LINKS.items()
                for row in _over(bench, words, store, registry.name, name, rate, delay, has_traced=not small)
            ]
            return [*found, last]
    except Missing as err:
        return [Row("runner boot --pull lazy", missing=str(err))]
    finally:
        clean(store, room)


def _publish_traced(bench: Bench, image: Path, artifact: Path, room: Path, reference: str) -> None:
    """Publish the artifact of `image` with a boot trace, from the reads of a boot of `artifact`."""
    project = Project(room / "project")
    project.write(
        f'[image.app]\nsource = "oci:{image}:latest"\npublish = "oci:out"\nversion = "1"\nboot_trace = "app.trace"\n'
    )
    shutil.copytree(bench.kit, project.folder / "cache", symlinks=True, copy_function=os.link)
    trace = ("trace", f"oci:{artifact}:1", "--reads", str(room / "reads"), "-o", str(project.folder / "app.trace"))
    copy = ("copy", "--plain-http", f"oci:{project.folder / 'out'}:1", reference)
    subprocess.run([*TOOL, *trace], check=True, capture_output=True)
    project.doit("publish")
    subprocess.run([*TOOL, *copy], check=True, capture_output=True)


class _Words(NamedTuple):
    """The words of a boot, before the artifact's name and after it."""

    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    def boot(self, how: str, reference: str, *more: str) -> list[str]:
        options = ("--plain-http", "--network", "none", "--cold", "--pull", how, *more, *self.options)
        return [sys.executable, "-m", "runner", "boot", *options, reference, *self.arguments]


def _end(store: Path) -> None:
    """Kill the servers that still fill disks."""
    for pid in server_of(Store(store)) if store.exists() else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def _ended(store: Path) -> Iterator[None]:
    try:
        yield
    finally:
        _end(store)


def _over(
    bench: Bench, words: _Words, store: Path, server: str, name: str, rate: float, delay: float, *, has_traced: bool
) -> list[Row]:
    def empty() -> None:
        _end(store)
        clean(store)

    warm_store = bench.work / "warm"
    by_warm, by_missing = GOALS[name]
    work = f"lazy boot, empty store, {name}"
    with link(server, rate, delay) as near, _ended(store), _Watched(store) as watched:
        reference = f"{near}/app:1"
        ours = {"ROOTDISK_STORE": str(store)}
        subprocess.run(
            words.boot("missing", reference), check=True, env={**os.environ, "ROOTDISK_STORE": str(warm_store)}
        )
        traced = [Contender("traced", words.boot("lazy", f"{near}/app:traced"), empty, ours)] * has_traced
        try:
            lazy, missing, warm, *others = bench.measured(
                Contender("lazy", words.boot("lazy", reference), empty, ours),
                Contender("missing", words.boot("missing", reference), empty, ours),
                Contender("warm", words.boot("missing", reference), lambda: None, {"ROOTDISK_STORE": str(warm_store)}),
                *traced,
            )
        except Failed as err:
            return [Row(work, missing=str(err))]
        finally:
            clean(warm_store)
    goals = {"wall": by_warm} if by_warm else {}
    said = f"yes; server: {watched.peak_kb / 1e3:.0f} MB; {watched.waited} of {watched.reads} reads waited"
    return [
        Row(work, f"warm boot + {WARM_S:g} s", goals, lazy, _later(warm), said),
        Row(f"lazy boot or pull first, {name}", "--pull missing", {"wall": by_missing}, lazy, missing, "yes"),
        *(
            row
            for other in others
            for row in (
                Row(f"traced {work}", f"warm boot + {WARM_S:g} s", goals, other, _later(warm), "yes"),
                Row(
                    f"traced lazy boot or pull first, {name}",
                    "--pull missing",
                    {"wall": by_missing},
                    other,
                    missing,
                    "yes",
                ),
            )
        ),
    ]


def _later(measured: Measured) -> Measured:
    return replace(measured, runs=tuple(replace(run, wall_s=run.wall_s + WARM_S) for run in measured.runs))


def _fetched(bench: Bench, words: _Words, store: Path, reference: str, reads: Path) -> Row:
    """Boot with only what is read fetched, and compare its compressed bytes with all of them. `reads` is written."""
    _end(store)
    clean(store)
    work = "lazy boot, without a fill"
    command = words.boot("lazy", reference, "--record-reads", str(reads))
    try:
        (measured,) = bench.measured(Contender("lazy", command, lambda: None, {"ROOTDISK_STORE": str(store)}), rounds=0)
    except Failed as err:
        return Row(work, missing=str(err))
    with open_artifact(parse_reference(reference), Platform.host(), RegistryOptions(plain_http=True)) as artifact:
        index, size = artifact.index, artifact.roles.disk_bytes
    (disk,) = (path for path in (store / "disks").iterdir() if path.suffix in (".partial", ".raw"))
    fetched = _there(disk, index)
    share = fetched / size
    said = f"fetched {fetched / 1e6:.1f} of {size / 1e6:.1f} MB = {share:.1%} ≤ {SHARE:.0%}"
    return Row(work, ours=measured, same=f"{said}: {'yes' if share <= SHARE else 'NO'}", fault=share > SHARE)


def _there(partial: Path, index: ChunkIndex) -> int:
    """Count the compressed bytes of the chunks that a partial file has."""
    count = 0
    with partial.open("rb") as file:
        for chunk in index.chunks:
            data = b"" if chunk.zero else os.pread(file.fileno(), chunk.length, chunk.offset)
            count += chunk.blob_length * (hashlib.sha256(data).digest() == chunk.sha256)
    return count


class _Watched:
    """The memory of a store's servers, and the reads of the last one, looked at all the time."""

    def __init__(self, store: Path) -> None:
        self.peak_kb = self.reads = self.waited = 0
        self._store = store
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(WATCH_S * 10):
            for path in (self._store / "lazy").glob("*.lock"):
                with contextlib.suppress(Exception):
                    self._look(path)

    def _look(self, path: Path) -> None:
        for pid in server_of(Store(self._store)):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    self.peak_kb = max(self.peak_kb, int(line.split()[1]))
        status = filling.status(Store(self._store), Digest("sha256", path.stem))
        if status is not None and status.reads:
            self.reads, self.waited = status.reads, status.reads_waited
