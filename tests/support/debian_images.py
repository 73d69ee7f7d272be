"""Source images as Dockerfiles on Debian make them: packages and a script (RUN), files (COPY), and a config."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from imagetool.demo.debian import SUITE, own_mounts
from tests.support.layouts import write_layout

needs_mmdebstrap = pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DOCUMENTATION = ("doc", "info", "man")


@dataclass(frozen=True, slots=True)
class Recipe:
    """An image. `packages` empty: from scratch."""

    config: dict[str, Any]
    packages: str = ""
    run: str = ""  # shell commands, as root in the new system
    files: dict[str, str | bytes] = field(
        default_factory=dict
    )  # path: content; executable if it begins with #! or is a program
    links: dict[str, str] = field(default_factory=dict)  # path: target


def make_image(folder: Path, recipe: Recipe) -> str:
    """Make the image in the OCI layout `folder`/image: one layer of the system, one of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    layers = [_system(folder, recipe)] if recipe.packages else []
    layers += [_files(recipe.files, recipe.links)] if recipe.files else []
    write_layout(folder / "image", "t", layers, recipe.config, "zstd")
    return f"oci:{folder}/image:t"


def _system(folder: Path, recipe: Recipe) -> bytes:
    tar = folder / "system.tar"
    argv = [
        *own_mounts(), "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(recipe.packages.split())}",
        '--aptopt=Acquire::Languages "none"', "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _DOCUMENTATION),
        *("--skip=cleanup/run", "--skip=output/dev"),  # what packages and Dockerfiles make in /run is in images
        f'--customize-hook=chroot "$1" sh -exc {shlex.quote(recipe.run or ":")}',
        SUITE, str(tar),
    ]  # fmt: skip
    folder.chmod(0o755)  # mmdebstrap's user namespace reads it
    done = subprocess.run(
        argv, cwd=folder, env={**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    data = tar.read_bytes()
    tar.unlink()
    return data


def _files(files: dict[str, str | bytes], links: dict[str, str]) -> bytes:
    """A layer of `files` and the directories above them, and of `links` between them; all of root."""
    buffer, written = io.BytesIO(), set()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, content in files.items():
            parts = path.strip("/").split("/")
            for parent in ("/".join(parts[:n]) for n in range(1, len(parts))):
                if parent not in written:
                    written.add(parent)
                    member = tarfile.TarInfo(parent)
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(member)
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(path.strip("/"))
            member.size, member.mode = len(data), 0o755 if data[:2] in (b"#!", b"\x7fE") else 0o644
            tar.addfile(member, io.BytesIO(data))
        for path, target in links.items():
            member = tarfile.TarInfo(path)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return buffer.getvalue()
