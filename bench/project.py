"""Builds again: after small changes, against from nothing; and `doit build` with nothing to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import trustme

from bench.images import Images
from bench.measure import Contender
from bench.rows import Row
from bench.work import TOOL, Bench, Same, clean, compared

ROOT = Path(__file__).resolve().parents[1]
DOIT = (sys.executable, "-m", "doit")
LINKED_BYTES = 1 << 20  # files from this size on are never written again under their name
SMALL_CHANGE = 0.15


@dataclass(frozen=True, slots=True)
class Project:
    """A directory with our dodo.py, an images.toml and a cache."""

    folder: Path

    def write(self, images: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "dodo.py", self.folder)
        (self.folder / "images.toml").write_text(images)

    def doit(self, *arguments: str) -> None:
        command = [*DOIT, *arguments]
        environment = {**os.environ, **self.environment}
        subprocess.run(command, cwd=self.folder, env=environment, check=True, capture_output=True)

    @property
    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(ROOT)}


def _copied(source: str, target: str) -> None:
    if os.stat(source).st_size >= LINKED_BYTES and not source.endswith(".sqlite3"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def rebuilds(bench: Bench, before: Path, after: Path) -> list[Row]:
    """`imagetool build` after one change, with the cache of the build before and into its layout, against from nothing.

    `after` is the image `before` with another top layer. Kernel and init are there for both.
    """
    authority = bench.work / "ca.pem"
    trustme.CA().cert_pem.write_to_path(authority)
    changes: dict[str, tuple[Path, tuple[str, ...], float]] = {
        "rebuild: top layer": (after, (), 0.25),
        "rebuild: env": (before, ("-e", "MODE=production"), SMALL_CHANGE),
        "rebuild: TLS": (before, ("--tls-ca", str(authority)), SMALL_CHANGE),
        "rebuild: owners of a path": (before, ("--owner", "/sandbox=65534:65534"), SMALL_CHANGE),
    }
    built, published, source = bench.work / "built", bench.work / "published", bench.work / "app"
    out, theirs = bench.work / "again", bench.work / "full"
    environment = {"ROOTDISK_CACHE": str(bench.cache)}

    def name_as(image: Path) -> None:
        clean(source)  # the disk's UUID is made of the image's name, so both versions get one
        source.symlink_to(image)

    def command(place: Path, options: Sequence[str]) -> list[str]:
        return [*TOOL, "build", "--force", *options, f"oci:{source}:latest", f"oci:{place}:1"]

    name_as(before)
    bench.fresh(out)()
    subprocess.run(command(out, ()), env={**os.environ, **environment}, check=True, capture_output=True)
    clean(built, published)
    bench.cache.rename(built)
    out.rename(published)

    def rebuild(work: str, image: Path, options: tuple[str, ...], goal: float) -> Row:
        def prepare() -> None:
            clean(out, bench.cache)
            shutil.copytree(built, bench.cache, symlinks=True, copy_function=_copied)
            shutil.copytree(published, out, copy_function=_copied)

        name_as(image)
        again = Contender("again", command(out, options), prepare, environment)
        full = Contender("full", command(theirs, options), bench.fresh(theirs), environment)
        return compared(
            bench,
            Row(work, "full build", {"wall": goal}),
            again,
            full,
            lambda: Same("yes") if _digest(out) == _digest(theirs) else Same("NO: another digest", fault=True),
        )

    try:
        return [rebuild(work, *change) for work, change in changes.items()]
    finally:
        clean(built, published, source, out, theirs)


def _digest(layout: Path) -> str:
    index = json.loads((layout / "index.json").read_bytes())["manifests"]
    return str(next(m["digest"] for m in index if m["annotations"]["org.opencontainers.image.ref.name"] == "1"))


def idle(bench: Bench, images: Images, counts: Mapping[int, float]) -> list[Row]:
    """`doit build` with nothing to do; goals in seconds by number of images."""
    return [_idle(bench, images.many(30), count, goal) for count, goal in counts.items()]


def _idle(bench: Bench, source: Path, count: int, goal: float) -> Row:
    project = Project(bench.work / "project")
    try:
        project.write("".join(_image(f"image-{number}", source) for number in range(count)))
        project.doit("build")
        contender = Contender("ours", [*DOIT, "build"], lambda: None, project.environment, project.folder)
        (ours,) = bench.measured(contender)
        return Row(f"doit build, nothing to do, {count} image{'s' * (count > 1)}", "", {"wall": goal}, ours)
    finally:
        clean(project.folder)


def parallel(bench: Bench, sources: Sequence[Path]) -> Row:
    """`doit build` of several images by two processes, against one, with only the guest's init in the cache."""
    both = [Project(bench.work / f"processes-{count}") for count in (2, 1)]

    def contender(project: Project, count: int) -> Contender:
        kit, cache = project.folder / "kit", project.folder / "cache"

        def prepare() -> None:
            clean(cache, project.folder / "out")
            shutil.copytree(kit, cache)

        project.doit("init")
        cache.rename(kit)
        return Contender(
            f"-n {count}",
            [*DOIT, "-n", str(count), "build"],
            prepare,
            project.environment,
            project.folder,
        )

    def check() -> Same:
        ours, theirs = ([_digest(project.folder / "out" / str(n)) for n in range(len(sources))] for project in both)
        return Same("yes") if ours == theirs else Same("NO: other digests", fault=True)

    try:
        for project in both:
            project.write("".join(_published(number, source) for number, source in enumerate(sources)))
        row = Row(f"doit build of {len(sources)} images, -n 2", "-n 1", {"wall": 0.65})
        return compared(bench, row, contender(both[0], 2), contender(both[1], 1), check)
    finally:
        clean(*(project.folder for project in both))


def _published(number: int, source: Path) -> str:
    return f'{_image(f"image-{number}", source)}publish = "oci:out/{number}"\nversion = "1"\n'


def processors(bench: Bench, image: Path) -> Row:
    """A build by two processors, against the same by one."""
    ours, theirs = bench.work / "by-two", bench.work / "by-one"
    command = ["build", f"oci:{image}:latest"]
    two = bench.ours("two", [*command, f"oci:{ours}:1"], ours)
    one = bench.ours("one", [*command, f"oci:{theirs}:1"], theirs)
    row = Row("OCI → artifact, two processors", "one processor", {"wall": 0.6})
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        return replace(row, missing="this machine has one processor")
    try:
        return compared(
            bench,
            row,
            replace(two, command=["taskset", "-c", f"{first},{others[0]}", *two.command]),
            replace(one, command=["taskset", "-c", str(first), *one.command]),
            lambda: Same("yes") if _digest(ours) == _digest(theirs) else Same("NO: another digest", fault=True),
        )
    finally:
        clean(ours, theirs)


def _image(name: str, source: Path) -> str:
    return f'[image.{name}]\nsource = "oci:{source}:latest"\nkernel = "none"\n'
