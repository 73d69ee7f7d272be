"""Clean machines that build and publish to a common registry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.support.commands import ROOT, run


class Machine:
    """A clean CI machine: a project of its own that publishes to a common registry."""

    def __init__(self, place: Path, layout: Path, target: str, env: str = "1") -> None:
        self.place = place
        (place / "cache").mkdir(parents=True)
        shutil.copy(ROOT / "dodo.py", place)
        (place / "images.toml").write_text(
            f'[image.app]\nsource = "oci:{layout}:t"\npublish = "{target}"\nplain_http = true\nkernel = "none"\n'
            f'size = "64MiB"\n[image.app.env]\nA = "{env}"\n'
        )

    def build(self, *arguments: str) -> tuple[int, str]:
        done = run("doit", *(arguments or ("build",)), cwd=self.place)
        return done.returncode, done.stdout + done.stderr

    def digest(self) -> str:
        return str(json.loads((self.place / "cache/app/published.json").read_bytes())["digest"])

    @property
    def made(self) -> bool:
        return (self.place / "cache/disks").exists()

    def add(self, end: str, before: str = "") -> None:
        """Put tables at the end of images.toml, and keys of the image before its first table."""
        path = self.place / "images.toml"
        path.write_text(path.read_text().replace("kernel =", f"{before}kernel =", 1) + end)
