"""Programs of a newer Debian than the machine's, run with that release's own libraries; nothing is installed.

Debian 12 has no cosign, and its skopeo is built without sigstore ("Debian-local change: sigstore disabled").
"""

from __future__ import annotations

import subprocess
from pathlib import Path

RELEASE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class NewerDebian:
    """A directory with the packages of RELEASE."""

    def __init__(self, folder: Path, *packages: str) -> None:
        """Download and unpack `packages` with all that they need, by apt with lists and state of its own."""
        self.root = folder / "root"
        for name in ("lists/partial", "archives/partial", "root"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        sites = _run("apt-get", "indextargets", "--format", "$(SITE)", "Origin: Debian", "Label: Debian").split()
        (folder / "sources").write_text(f"deb [signed-by={KEYRING}] {sites[0]} {RELEASE} main\n")
        settings = {
            "Dir::Etc::sourcelist": folder / "sources",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        apt_get = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
        _run(*apt_get, "update")
        _run(*apt_get, "install", "-y", "--no-install-recommends", "--download-only", *packages)
        for package in sorted((folder / "archives").glob("*.deb")):
            _run("dpkg-deb", "-x", str(package), str(self.root))
            package.unlink()

    def run(self, program: str, *words: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs."""
        (loader,) = self.root.glob("usr/lib*/ld-linux-*.so.*")
        (libraries,) = self.root.glob("usr/lib/*-linux-gnu")
        argv = [str(loader), "--library-path", str(libraries), str(self.root / "usr/bin" / program), *words]
        return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def _run(*argv: str) -> str:
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True, text=True).stdout
