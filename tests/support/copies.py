"""A project with a copy of our packages, to plant something in and see whether it is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.commands import ROOT
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file

LAYERS = [directory(b"etc") + b"".join(file(b"etc/%d" % n, b"text %d" % n * 900) for n in range(9)) + END]
IMAGES = (
    '[image.app]\nsource = "oci:layout:t"\nkernel = "none"\nsize = "64MiB"\n[image.app.env]\nA = "not to be seen"\n'
)


def copy_project(place: Path) -> None:
    """dodo.py, the packages, images.toml and the source it names, in `place`; run with PYTHONPATH=`place`."""
    write_layout(place / "layout", "t", LAYERS)
    for package in ("rootdisk", "imagetool", "runner"):
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dodo.py", place)
    (place / "images.toml").write_text(IMAGES)
    place.chmod(0o755)


def plant(project: Path, module: str, old: str, new: str) -> None:
    """`new` in place of `old` in the project's copy of `module`."""
    path = project / module
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def copy_sources(place: Path) -> Path:
    """This project's files in `place`, without what is made of them."""
    at_the_top = {".git", ".venv", "cache", "build", "dist", "site"}
    anywhere = shutil.ignore_patterns("built", "__pycache__", "*.egg-info", ".hypothesis", ".*_cache")

    def ignore(folder: str, names: list[str]) -> set[str]:
        return anywhere(folder, names) | (at_the_top & set(names) if Path(folder) == ROOT else set())

    return Path(shutil.copytree(ROOT, place, ignore=ignore))


def build_wheel(place: Path) -> Path:
    """Build the wheel of this project into the directory `place`."""
    with tempfile.TemporaryDirectory() as folder:
        copy_sources(Path(folder, "project"))
        argv = [sys.executable, "-m", "build", "--wheel", "--outdir", str(place), "."]
        done = subprocess.run(argv, cwd=Path(folder, "project"), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = place.glob("*.whl")
    return wheel
