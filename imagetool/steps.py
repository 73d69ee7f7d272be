"""What dodo's tasks call: receipts in, receipts out, and every expected failure as one line.

A receipt is a small JSON file under cache/NAME/: source.json, kernel.json, disk.json, artifact.json, published.json.
It says what was made of what, and it is the edge between two tasks. Disks lie in cache/disks/KEY/, by derivation key,
so going back to an earlier input builds nothing; cache/NAME/ has links to the current one.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

from doit.exceptions import TaskFailed

from imagetool import recipe
from imagetool.config import Image
from runner.errors import RootdiskError
from runner.oci import Digest, Platform

P = ParamSpec("P")

DISK_FILES = ("rootfs.ext4", "rootfs.ext4.zst", "rootfs.ext4.chunks", "rootfs.ext4.keys")


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything made lies."""

    cache: Path

    def of(self, image: Image) -> Path:
        return self.cache / image.name

    def receipt(self, image: Image, name: str) -> Path:
        return self.of(image) / f"{name}.json"

    def init(self, platform: Platform) -> Path:
        """The directory of the guest's init: `init` and `init.json`."""
        return self.cache / "guest" / platform.architecture

    @property
    def disks(self) -> Path:
        return self.cache / "disks"


def step(function: Callable[P, None]) -> Callable[P, TaskFailed | None]:
    """A function as a doit action: expected errors become the task's one line of failure."""

    @functools.wraps(function)
    def action(*args: P.args, **kwargs: P.kwargs) -> TaskFailed | None:
        try:
            function(*args, **kwargs)
        except RootdiskError as err:
            return TaskFailed(str(err))
        except OSError as err:
            return TaskFailed(f"{err.filename or 'input/output'}: {err.strerror or err}")
        return None

    return action


@step
def demo(layout: Path) -> None:
    """The demo's source image."""
    from imagetool.demo import image

    started = time.monotonic()
    print("demo: installing Debian's packages into a source image, about half a minute", flush=True)
    digest = image.make(layout)
    _say("demo", f"source image {digest.short}", started)


@step
def init(places: Places, platform: Platform) -> None:
    """The guest's init, for one platform."""
    from imagetool import build

    directory = places.init(platform)
    directory.mkdir(parents=True, exist_ok=True)
    write_receipt(directory / "init.json", build.make_init(platform, directory / "init"))


@step
def kernel(places: Places, image: Image) -> None:
    """Kernel and initramfs of an image; both null in the receipt where the artifact carries none."""
    from imagetool import build

    directory = places.of(image)
    directory.mkdir(parents=True, exist_ok=True)
    receipt = build.make_kernel(image, places.init(image.platform) / "init", directory)
    write_receipt(places.receipt(image, "kernel"), receipt)


@step
def resolve(places: Places, image: Image) -> None:
    """Which digest the source means today."""
    from imagetool import build

    write_receipt(places.receipt(image, "source"), build.resolve(image).to_json())


@step
def disk(places: Places, image: Image) -> None:
    """The disk, its compressed form and its chunk index; taken from cache/disks/ where the key has been built."""
    from imagetool import build

    inputs = current_inputs(places, image)
    key = recipe.derivation_key(inputs)
    found = places.disks / key
    started = time.monotonic()
    if (found / "disk.json").exists():
        what = f"disk {key[:12]} is there already"
    else:
        places.disks.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=places.disks) as name:
            work = Path(name) / "disk"
            work.mkdir()
            receipt = build.build_disk(
                image, build.ResolvedSource.of(_source(places, image)), places.init(image.platform) / "init", work
            )
            write_receipt(work / "disk.json", {**receipt, "key": key, "inputs": inputs})
            if found.exists():  # an earlier run was killed while it was removed by hand
                shutil.rmtree(found)
            work.rename(found)
        what = f"disk {key[:12]}, {(found / 'rootfs.ext4.zst').stat().st_size / 1e6:.0f} MB compressed"
    for file in DISK_FILES:
        _link(found / file, places.of(image) / file)
    write_receipt(places.receipt(image, "disk"), read_receipt(found / "disk.json"))
    _say(image.name, what, started)


@step
def pack(places: Places, image: Image) -> None:
    """The artifact's config and manifest, of a disk and a kernel."""
    from imagetool import build

    write_receipt(places.receipt(image, "artifact"), build.pack(image, places.of(image)))


@step
def publish(places: Places, image: Image) -> None:
    """The artifact, in every target."""
    from imagetool import build

    started = time.monotonic()
    receipt = build.publish(image, places.of(image))
    write_receipt(places.receipt(image, "published"), receipt)
    for target in image.publish:
        _say(image.name, f"published {target.place}:{image.version}", started)


@step
def check(places: Places, image: Image) -> None:
    """The disk by e2fsck, which must find nothing, and by our own reader; then a boot."""
    from imagetool import build

    path = places.of(image) / "rootfs.ext4"
    e2fsck = shutil.which("e2fsck", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if e2fsck is None:
        raise RootdiskError("e2fsck is not installed", "apt-get install e2fsprogs")
    done = subprocess.run(
        [e2fsck, "-fn", str(path)], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        raise RootdiskError(f"e2fsck found errors in {path}: {done.stdout[-500:].strip()}")
    # e2fsck ends with 0 when it only complains of wrong counts or checksums.
    talk = [line for line in done.stdout.splitlines() if line and not line.startswith(("Pass ", f"{path}: "))]
    if talk:
        raise RootdiskError(f"e2fsck complains of {path}: {' '.join(talk)[:500]}")
    files = build.read_through(path)
    build.check(image, places.of(image))
    print(f"{image.name}: e2fsck, our reader ({files} files) and a boot found nothing wrong", flush=True)


@step
def explain(places: Places, image: Image) -> None:
    """Why the next build would make another disk than the last."""
    receipt = places.receipt(image, "disk")
    if not receipt.exists():
        print(f"{image.name}: not built yet")
        return
    built = read_receipt(receipt)
    changes = recipe.explain(built["inputs"], current_inputs(places, image))
    print(
        f"{image.name}: {built['key'][:12]} is current"
        if not changes
        else f"{image.name}: changed since the last build"
    )
    for line in changes:
        print(f"  {line}")


def current_inputs(places: Places, image: Image) -> dict[str, Any]:
    """The derivation key's inputs as the receipts and images.toml have them now."""
    from imagetool.artifact import frames

    source = Digest.parse(_source(places, image)["digest"])
    kernel = read_receipt(places.receipt(image, "kernel"))
    guest = recipe.Guest(
        Digest.parse(read_receipt(places.init(image.platform) / "init.json")["digest"]),
        *(Digest.parse(kernel[name]) if kernel.get(name) else None for name in ("kernel", "initramfs")),
    )
    return recipe.inputs(image, source, guest, frames.versions())


def _source(places: Places, image: Image) -> dict[str, Any]:
    return read_receipt(places.receipt(image, "source"))


def read_receipt(path: Path) -> dict[str, Any]:
    """The receipt at `path`; RootdiskError where it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as err:
        raise RootdiskError(f"{path.name} of {path.parent.name} is missing", "doit build makes it") from err
    except ValueError as err:
        raise RootdiskError(f"{path} is damaged", "remove it and start doit build again") from err
    assert isinstance(value, dict)
    return value


def write_receipt(path: Path, value: Mapping[str, Any]) -> None:
    """`value` at `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def make_cache(cache: Path) -> None:
    """The directory of everything made; RootdiskError where it cannot be."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise RootdiskError(f"cannot write to {cache}: {err.strerror}", "mend its owner and mode") from err


def lock(cache: Path) -> int:
    """Wait for the run that has the cache, and have it until this process ends; the descriptor that holds the lock.

    doit itself does not lock, and two runs would lose each other's records. RootdiskError: the cache cannot be written.
    """
    path = cache / ".lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as err:
        raise RootdiskError(f"cannot write to {cache}: {err.strerror}", "mend its owner and mode") from err
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(
            f"doit: waiting for process {os.pread(fd, 20, 0).decode().strip() or '?'}, which builds here",
            file=sys.stderr,
            flush=True,
        )
        fcntl.flock(fd, fcntl.LOCK_EX)
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _link(target: Path, link: Path) -> None:
    """A relative link, so that the project's directory may move; in one step."""
    link.parent.mkdir(parents=True, exist_ok=True)
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, link.parent))
    partial.replace(link)


def _say(name: str, what: str, started: float) -> None:
    print(f"{name}: {what}, {time.monotonic() - started:.1f} s", flush=True)
