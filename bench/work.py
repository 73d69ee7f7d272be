"""Shared by all rows: a place to work, a fresh cache for each run, and the comparison of results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.measure import Contender, Failed, Measured, interleaved
from bench.peers import Peers
from bench.rows import Row
from bench.same import compare

TOOL = (sys.executable, "-m", "imagetool")


@dataclass(frozen=True, slots=True)
class Same:
    """The comparison of two outputs, as text, and whether times may be compared."""

    words: str
    fault: bool = False


@dataclass(frozen=True, slots=True)
class Bench:
    """The place, tools and repetitions of a run. `kit` is a cache with only the guest's kernel and init."""

    work: Path
    peers: Peers
    rounds: int
    kit: Path
    settle: bool = True

    def fresh(self, *paths: Path) -> Callable[[], None]:
        """A step before each run: our cache as in `kit`, and `paths` gone."""

        def prepare() -> None:
            clean(*paths, self.cache)
            shutil.copytree(self.kit, self.cache, symlinks=True, copy_function=os.link)

        return prepare

    @property
    def cache(self) -> Path:
        return self.work / "cache"

    def measured(
        self, *contenders: Contender, after_first: Callable[[], None] = lambda: None, rounds: int | None = None
    ) -> list[Measured]:
        return interleaved(contenders, self.rounds if rounds is None else rounds, after_first, self.settle)

    def ours(self, name: str, command: Sequence[str], *paths: Path) -> Contender:
        return Contender(name, [*TOOL, *command], self.fresh(*paths), {"ROOTDISK_CACHE": str(self.cache)})


def make_kit(kit: Path, image: Path) -> None:
    """The guest's kernel and init, got by building any image. Those of other sources go: each run would make its init again."""
    if kit.exists():
        return
    partial = kit.with_name(f".{kit.name}")
    clean(partial, *kit.parent.glob("kit*"))
    partial.mkdir(parents=True)
    command = [*TOOL, "build", f"oci:{image}:latest", f"oci:{partial / 'artifact'}:1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "ROOTDISK_CACHE": str(partial)})
    clean(*(path for path in partial.iterdir() if path.name not in ("guest", "kernels")))
    partial.rename(kit)


def compared(bench: Bench, row: Row, ours: Contender, theirs: Contender, check: Callable[[], Same]) -> Row:
    """`row` with what two contenders took and how their outputs compare; or with who failed."""
    found: list[Same] = []
    try:
        first, second = bench.measured(ours, theirs, after_first=lambda: found.append(check()))
    except Failed as err:
        return replace(row, missing=str(err))
    return replace(row, ours=first, theirs=second, same=found[-1].words, fault=found[-1].fault)


def same(ours: Path, theirs: Path, left_out: Sequence[str] = ()) -> Same:
    """Two disks. A directory's time alone is told and no fault: a peer that loses it has not done less work."""
    try:
        found = compare(ours, theirs, left_out)
    except (PermissionError, subprocess.CalledProcessError) as err:
        return Same(f"not checked: {err}")
    if not found:
        return Same("yes")
    if all(difference.is_time_of_directory for difference in found):
        return Same(f"yes, but {len(found)} directories' times")
    return Same(f"NO: {len(found)} paths, {found[0]}", fault=True)


def unpacked(artifact: Path, disk: Path, tag: str = "1") -> Path:
    """An artifact's raw disk as `disk`, by zstd."""
    layout = artifact / "blobs"
    index = json.loads((artifact / "index.json").read_bytes())["manifests"]
    names = [entry for entry in index if entry["annotations"]["org.opencontainers.image.ref.name"] == tag]
    manifest = json.loads((layout / names[0]["digest"].replace(":", "/")).read_bytes())
    blobs = [layer["digest"] for layer in manifest["layers"] if layer["mediaType"].endswith("ext4+zstd")]
    with subprocess.Popen(["zstd", "-dqf", "--sparse", "-", "-o", disk], stdin=subprocess.PIPE) as zstd:
        assert zstd.stdin is not None
        for blob in blobs:
            with (layout / blob.replace(":", "/")).open("rb") as file:
                shutil.copyfileobj(file, zstd.stdin, 1 << 20)
    if zstd.returncode:
        raise subprocess.CalledProcessError(zstd.returncode, "zstd")
    return disk


def clean(*paths: Path) -> None:
    """Gone, whatever they are."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
