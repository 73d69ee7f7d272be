"""`doit build` in a project of its own: again after small changes, against from nothing; and with nothing to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import trustme

from bench.images import Images
from bench.measure import Contender
from bench.rows import Row
from bench.work import Bench, Same, clean, compared

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

    def contender(self, name: str, kept: Path, images: str) -> Contender:
        """`doit build` of `images` with the cache and records as in `kept`."""

        def prepare() -> None:
            clean(self.folder)
            shutil.copytree(kept, self.folder, symlinks=True, copy_function=_copied)
            (self.folder / "images.toml").write_text(images)

        return Contender(name, [*DOIT, "build"], prepare, self.environment, self.folder)

    def keep(self, place: Path) -> None:
        clean(place)
        self.folder.rename(place)

    @property
    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(ROOT)}

    def digest(self, image: str) -> str:
        """Of the artifact as it is now."""
        return str(json.loads((self.folder / "cache" / image / "artifact.json").read_bytes())["digest"])


def _copied(source: str, target: str) -> None:
    if os.stat(source).st_size >= LINKED_BYTES and not source.endswith(".sqlite3"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def rebuilds(bench: Bench, before: Path, after: Path) -> list[Row]:
    """Builds after one change, with the cache of the build before it, against the same from nothing.

    `after` is the image `before` with another top layer. Guest init and receipts of what did not change are there for both.
    """
    project = Project(bench.work / "project")
    nothing, built = bench.work / "nothing", bench.work / "built"
    authority = bench.work / "ca.pem"
    trustme.CA().cert_pem.write_to_path(authority)
    plain = _image("app", before)
    changes = {
        "rebuild: top layer": (_image("app", after), 0.25),
        "rebuild: env": (f'{plain}[image.app.env]\nMODE = "production"\n', SMALL_CHANGE),
        "rebuild: TLS": (f'{plain}[image.app.tls]\nca = "{authority}"\n', SMALL_CHANGE),
        "rebuild: owners of a path": (f'{plain}[image.app.owners]\n"/sandbox" = "65534:65534"\n', SMALL_CHANGE),
    }
    project.write(plain)
    project.doit("init")
    project.keep(nothing)
    project.contender("built", nothing, plain).prepare()
    project.doit("build")
    project.keep(built)
    try:
        return [
            _rebuild(bench, project, Row(work, "full build", {"wall": goal}), nothing, built, images)
            for work, (images, goal) in changes.items()
        ]
    finally:
        clean(project.folder, nothing, built)


def _rebuild(bench: Bench, project: Project, row: Row, nothing: Path, built: Path, images: str) -> Row:
    again = project.contender("again", built, images)
    digests: list[str] = []

    def full_prepare() -> None:
        if not digests:
            digests.append(project.digest("app"))  # of the rebuild, which has just ended
        full.prepare()

    full = project.contender("full", nothing, images)
    theirs = Contender("full", full.command, full_prepare, full.environment, full.cwd)

    def check() -> Same:
        if digests[0] == project.digest("app"):
            return Same("yes")
        return Same("NO: another digest", fault=True)

    return compared(bench, row, again, theirs, check)


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


def _image(name: str, source: Path) -> str:
    return f'[image.{name}]\nsource = "oci:{source}:latest"\nkernel = "none"\n'
