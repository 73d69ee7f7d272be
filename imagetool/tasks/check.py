"""The check of a published disk: fetched as a host does, e2fsck, our own reader, and a boot."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from imagetool.config.images import Image
from rootdisk.errors import RootdiskError
from rootdisk.system import process
from rootdisk.text import one_line


def check_published(image: Image) -> int:
    """Check the disk of the image's published artifact; return how many files it has.

    Raises:
        RootdiskError: it cannot be fetched, read or booted, or e2fsck has something to say.
    """
    path = fetched(image)
    e2fsck = shutil.which("e2fsck", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if e2fsck is None:
        raise RootdiskError("e2fsck is not installed", "apt-get install e2fsprogs")
    done = process.run([e2fsck, "-fn", str(path)])
    if done.status:
        raise RootdiskError(f"e2fsck found errors in {path}: {done.text[-500:].strip()}")
    # e2fsck ends with 0 when it only complains of wrong counts or checksums.
    talk = [line for line in done.text.splitlines() if line and not line.startswith(("Pass ", f"{path}: "))]
    if talk:
        raise RootdiskError(f"e2fsck complains of {path}: {' '.join(talk)[:500]}")
    files = read_through(path)
    boot(image)
    return files


def read_through(path: Path) -> int:
    """Read every inode, attribute and byte of the raw disk at `path`; how many names. BadInput names what is damaged."""
    from imagetool.ext4.reader import Reader

    count = 0
    with Reader.open(path) as reader:
        for _, node in reader.walk():
            count += 1
            reader.read_through(node)
    return count


def fetched(image: Image) -> Path:
    """The raw disk of the image's published artifact, in the runner's store; RootdiskError if it cannot be fetched."""
    done = process.run([*_runner("pull", image), "--json", f"{image.publish[0].place}:{image.version}"])
    if done.status:
        raise RootdiskError(one_line(done.complaint.strip().removeprefix("runner: ")))
    return Path(json.loads(done.text)["disk"])


def boot(image: Image) -> None:
    """Boot the published artifact as a sandbox that only says `rootdisk`; RootdiskError where it does not."""
    command = [*_runner("boot", image), "--network", "none", "--timeout", "120"]
    command += ["--entrypoint", "/.rootdisk/init", f"{image.publish[0].place}:{image.version}", "--", "--version"]
    done = process.run(command)
    if done.status or "rootdisk" not in done.text:
        raise RootdiskError(f"{image.name} does not boot: {(done.complaint or done.text)[-500:].strip()}")


def _runner(command: str, image: Image) -> list[str]:
    """A command of the runner on the image's registries and platform: the tools meet as their users do."""
    words = [sys.executable, "-m", "runner", command, "--platform", str(image.platform)]
    words += ["--plain-http"] if image.plain_http else []
    return words + (["--ca-file", str(image.ca_file)] if image.ca_file else [])
