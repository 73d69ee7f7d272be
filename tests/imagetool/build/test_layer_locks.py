"""Several processes that need the same layer: one makes it, the others use what it made; a killed one is not waited for."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imagetool.build.disk_cache import tidy
from imagetool.build.layer_locks import LayerLocks
from rootdisk.oci.documents import Digest
from rootdisk.system.locks import is_held
from tests.support.layouts import write_layout
from tests.support.tars import END, file
from tests.support.waiting import until

CHANCE = random.Random(5)
BASE = b"".join(file(b"base/%d" % n, CHANCE.randbytes(n << 20)) for n in (20, 8, 0)) + b"".join(
    file(b"base/small-%03d" % n, CHANCE.randbytes(9000)) for n in range(900)
)
BASE_CHUNKS = 40 + 16
PROGRAM = """
import sys
from pathlib import Path
from imagetool.build.artifact import make_artifact
from imagetool.config.images import Image
from imagetool.guest.programs import BootFiles, Guest
from imagetool.sources.open import open_source
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
source, cache = sys.argv[1], Path(sys.argv[2])
image = Image("app", parse_reference(source), (), platform=Platform("linux", "amd64"), size=256 << 20)
init = cache.with_name("init")
init.write_bytes(b"init")
with open_source(source, image.platform) as opened:
    made = make_artifact(image, opened, BootFiles(Guest(Digest.of(b"init")), init, None, None), cache)
print(made.digest, *made.chunks)
"""
TOPS = [file(b"top", b"%d" % n) for n in range(2)]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "layout"
    for tag, top in enumerate(TOPS):
        write_layout(folder, str(tag), [BASE + END, top + END], compression="plain")
    return folder


def start(layout: Path, tag: int, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, f"oci:{layout}:{tag}", str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, int, int]:
    """The artifact's digest, and how many chunks were new and reused."""
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    digest, new, reused = out.split()
    return digest, int(new), int(reused)


def stopped_within(layout: Path, cache: Path) -> subprocess.Popen[str]:
    """A build of image 0 that stands still while it makes the base layer."""
    process = start(layout, 0, cache)
    lock = cache / "indexes" / f"{Digest.of(BASE + END).hex}.lock"
    until(
        lambda: lock.exists() and is_held(lock) and lock.read_text().strip(), every_s=0.001
    )  # it has written who it is
    process.send_signal(signal.SIGSTOP)
    assert is_held(lock)
    return process


def waiting(layout: Path, cache: Path, other: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """A build of image 1 that waits for the base layer."""
    process = start(layout, 1, cache)
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said == f"waiting for process {other.pid} (making a layer), for layer {Digest.of(BASE + END).short}\n"
    return process


@pytest.fixture(scope="module")
def alone(layout: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The digests of both, each built by itself."""
    return [ended(start(layout, tag, tmp_path_factory.mktemp(f"alone-{tag}") / "cache"))[0] for tag in range(2)]


def test_a_layer_is_made_once(layout: Path, alone: list[str], tmp_path: Path) -> None:
    first = stopped_within(layout, tmp_path / "cache")
    second = waiting(layout, tmp_path / "cache", first)
    first.send_signal(signal.SIGCONT)
    digest, new, _ = ended(first)
    assert digest == alone[0]
    assert new > BASE_CHUNKS
    digest, new, reused = ended(second)
    assert digest == alone[1]
    assert new < 20
    assert reused > BASE_CHUNKS
    assert not list((tmp_path / "cache/indexes").glob("*.lock"))


def test_a_killed_build_is_not_waited_for(layout: Path, alone: list[str], tmp_path: Path) -> None:
    first = stopped_within(layout, tmp_path / "cache")
    second = waiting(layout, tmp_path / "cache", first)
    first.kill()
    first.communicate(timeout=60)
    digest, new, _ = ended(second)
    assert digest == alone[1]
    assert new > BASE_CHUNKS


def test_a_killed_build_leaves_nothing_with_a_name(layout: Path, tmp_path: Path) -> None:
    """Not even if blobs of large files are written."""
    cache = tmp_path / "cache"
    process = start(layout, 0, cache)

    def writes() -> bool:
        """Whether a file that may get a name has bytes."""
        found = []
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{process.pid}/fd").iterdir():
                if os.readlink(fd).startswith(f"{cache}/tmp/"):
                    found.append(fd.stat())
        return any(info.st_mode & 0o777 == 0o644 and info.st_size for info in found)

    until(writes, every_s=0.001)
    process.kill()
    process.communicate(timeout=60)
    assert not list((cache / "tmp").iterdir())
    assert not [path for path in (cache / "disks").rglob("*") if path.is_file()]
    tidy(cache)
    assert not list((cache / "disks").iterdir())


def test_no_two_wait_for_each_other(tmp_path: Path) -> None:
    """Who waits too long goes on without the lock, and leaves the holder's alone."""
    one, two = (Digest.of(name) for name in (b"one", b"two"))
    with LayerLocks(tmp_path) as ours, LayerLocks(tmp_path) as theirs:
        ours.take(one)
        theirs.take(two)
        theirs.take(one, timeout_s=0)
        theirs.release(one)
        assert is_held(tmp_path / "indexes" / f"{one.hex}.lock")
        ours.release(one)
        theirs.take(one, timeout_s=0)
        assert is_held(tmp_path / "indexes" / f"{one.hex}.lock")
    assert not list((tmp_path / "indexes").iterdir())
