"""The libkrun of tests, compiled by the compiler that makes the guest's init."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@dataclass(frozen=True)
class FakeKrun:
    path: Path

    @classmethod
    def build(cls, folder: Path, without: str = "") -> FakeKrun:
        """The library in `folder`; `without` is a function it lacks, as older ones do."""
        source = (Path(__file__).parent / "fake_krun.c").read_text()
        (folder / "krun.c").write_text(source.replace(f"int32_t {without}(", "int32_t other(") if without else source)
        path = folder / "libkrun.so.1"
        argv = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(path), str(folder / "krun.c")]
        subprocess.run(argv, check=True)
        return cls(path)

    @property
    def calls(self) -> list[str]:
        return self.path.with_name("libkrun.so.1.calls").read_text().splitlines()

    def fails(self, function: str, error: int) -> None:
        self.path.with_name("libkrun.so.1.fail").write_text(f"{function} {error}")

    def plays(self, guest: str) -> None:
        self.path.with_name("libkrun.so.1.guest").write_text(guest)
