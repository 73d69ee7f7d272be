"""The tools that we are compared with: which are installed, which can be fetched, and how each is run.

umoci, mke2fs and zstd are the distribution's. microsandbox comes from PyPI, oras from Debian's next release (an older one
has none), both into a directory of their own. Who cannot be had is missing, with the reason; nobody is guessed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.registry import PROGRAM, RunningRegistry, run_registry

MICROSANDBOX = "0.7.11"
ORAS_RELEASES = ("trixie", "sid")
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
UNPACK = Path(__file__).with_name("umoci-mke2fs.sh")


class Missing(Exception):
    """A peer that is not here, and why."""


@dataclass(frozen=True, slots=True)
class Peers:
    """Programs by name; Missing where one is not to be had. Without `fetch`, what is not here already is missing."""

    folder: Path
    fetch: bool = True

    def installed(self, *names: str) -> None:
        """Check that the programs of the distribution are installed."""
        missing = [name for name in names if shutil.which(name, path=PATH) is None]
        if missing:
            raise Missing(f"{', '.join(missing)} not installed")

    def microsandbox(self) -> Path:
        """Return the program `msb` of microsandbox."""
        return self._got("microsandbox", "microsandbox/_bundled/bin/msb", _get_microsandbox)

    def oras(self) -> Path:
        """The Go program."""
        found = shutil.which("oras", path=PATH)
        return Path(found) if found else self._got("oras", "usr/bin/oras", _get_oras)

    def _got(self, name: str, program: str, get: Callable[[Path], None]) -> Path:
        place = self.folder / name
        if not (place / program).exists():
            if not self.fetch:
                raise Missing(f"{name} not fetched")
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=self.folder) as work:
                try:
                    get(Path(work))
                except (OSError, subprocess.CalledProcessError) as err:
                    output = getattr(err, "stderr", None) or str(err)
                    raise Missing(f"{name}: {output.strip().splitlines()[-1]}") from err
                if not Path(work, program).exists():
                    raise Missing(f"{name}: no {program} in its package")
                Path(work).rename(place)
                Path(work).mkdir()
        return place / program


def _get_microsandbox(folder: Path) -> None:
    _run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(folder),
            f"microsandbox=={MICROSANDBOX}",
        ]
    )


def _get_oras(folder: Path) -> None:
    """With package lists of its own, so that the system's stay as they are."""
    sites = _run(["apt-get", "indextargets", "--format", "$(SITE)", "Origin: Debian", "Label: Debian"]).split()
    if not sites:
        raise OSError("no Debian mirror among apt's sources")
    errors = ""
    for release in ORAS_RELEASES:
        apt = folder / "apt"
        for name in ("lists/partial", "archives/partial"):
            (apt / name).mkdir(parents=True, exist_ok=True)
        (apt / "status").touch()
        (apt / "sources").write_text(
            f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {sites[0]} {release} main\n"
        )
        settings = {
            "Dir::Etc::sourcelist": apt / "sources",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": apt / "lists",
            "Dir::State::status": apt / "status",
            "Dir::Cache": apt,
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        apt_get = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
        try:
            _run([*apt_get, "update"])
            _run([*apt_get, "download", "oras"], apt)
        except subprocess.CalledProcessError as err:
            errors = err.stderr
            continue
        _run(["dpkg-deb", "-x", str(next(apt.glob("*.deb"))), str(folder)])
        shutil.rmtree(apt)
        return
    raise OSError(errors)


def _run(command: list[str], cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=True, text=True).stdout


@contextlib.contextmanager
def registry(work: Path, layout: Path, tag: str = "latest") -> Iterator[RunningRegistry]:
    """A registry on loopback with an OCI layout's `tag` in it as app:TAG. Missing where none is installed."""
    if shutil.which(PROGRAM) is None:
        raise Missing(f"{PROGRAM} not installed")
    shutil.rmtree(work, ignore_errors=True)
    with run_registry(work) as running:
        _run(
            [
                sys.executable,
                "-m",
                "imagetool",
                "copy",
                "--plain-http",
                f"oci:{layout}:{tag}",
                f"{running.name}/app:{tag}",
            ]
        )
        try:
            yield running
        finally:
            shutil.rmtree(work)
