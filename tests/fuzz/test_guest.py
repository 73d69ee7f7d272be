"""The guest's own C on the host, under a fuzzer: what its init reads from the runner and from its image.

guest/fuzz_*.c say what is tried. Kept inputs run with gcc's sanitizers in every run of the tests; at night libFuzzer looks for
others, FUZZ_SECONDS long.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fuzz import corpus
from tests.fuzz.options import KEPT, SECONDS
from tests.support.commands import ROOT

SOURCES = ROOT / "imagetool/guest/c"
GUEST = Path(__file__).with_name("guest")
NOBODY = 65534
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-fno-sanitize-recover=undefined", f"-I{SOURCES}", f"-I{GUEST}")


class Harness(NamedTuple):
    """guest/fuzz_NAME.c, and sources that are compiled on their own with other names for what they call."""

    parts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


HARNESSES = {
    "records": Harness(),
    "unpack": Harness(),
    "channel": Harness(
        ("log.c", "files.c", "records.c", "users.c", "signals.c", "program.c", "spawn.c", "mounts.c", "copy_up.c"),
        ("-Dfork=fuzz_fork", "-Dpipe2=fuzz_pipe2"),
    ),
}


def build(name: str, compiler: str, sanitizers: str, folder: Path, *more: str) -> Path:
    harness, program = HARNESSES[name], folder / name
    flags = [compiler, *FLAGS, f"-fsanitize={sanitizers}"]
    objects = [folder / f"{part}.o" for part in harness.parts]
    for part, out in zip(harness.parts, objects, strict=True):
        _run([*flags, *harness.names, "-c", str(SOURCES / part), "-o", str(out)], folder)
    _run([*flags, *more, str(GUEST / f"fuzz_{name}.c"), *map(str, objects), "-o", str(program)], folder)
    return program


def _run(argv: Sequence[str], folder: Path, seconds: float = 300) -> str:
    """What it says; as a user who can do no harm elsewhere, if we are root: some write files."""
    user = NOBODY if os.geteuid() == 0 and argv[0].startswith(str(folder)) else None
    groups: list[int] | None = [] if user is not None else None
    done = subprocess.run(
        argv, cwd=folder, capture_output=True, text=True, errors="replace", timeout=seconds, user=user, group=user, extra_groups=groups,
        env={**os.environ, "TMPDIR": str(folder), "ASAN_OPTIONS": "quarantine_size_mb=16"},  # 256 by default, near libFuzzer's limit
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def _inputs(name: str, folder: Path) -> Path:
    """The kept inputs as files."""
    place = folder / "kept"
    place.mkdir()
    for number, data in enumerate(corpus.kept(f"guest-{name}").values()):
        (place / f"{number:04}").write_bytes(data)
    return place


@pytest.fixture
def work() -> Iterator[Path]:
    """A directory that its user may enter, which pytest's own are not; in memory, as unpack writes files for each input."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def _given_away(folder: Path) -> None:
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", str(NOBODY), str(folder)], check=True)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("name", HARNESSES)
def test_fuzz_guest_some(name: str, work: Path) -> None:
    program = build(name, "gcc", "address,undefined", work, "-DWITH_MAIN")
    kept = sorted(map(str, _inputs(name, work).iterdir()))
    assert kept
    _given_away(work)
    _run([str(program), *kept], work)


@pytest.mark.nightly
@pytest.mark.parametrize("name", HARNESSES)
def test_fuzz_guest_long(name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clang = next(filter(None, map(shutil.which, ("clang", "clang-19", "clang-14"))), None)
    if clang is None:
        pytest.skip("clang is not installed: apt-get install clang")
    program = build(name, clang, "fuzzer,address,undefined", work)
    kept = _inputs(name, work)
    reached = work / "reached"
    reached.mkdir()
    before = Path(KEPT, f"guest-{name}")
    if KEPT and before.is_dir():
        shutil.copytree(before, reached, dirs_exist_ok=True)
    words = corpus.FOLDER / f"guest-{name}.dict"
    limits = [
        f"-max_total_time={SECONDS:.0f}",
        "-max_len=4096",
        "-timeout=2",
        "-rss_limit_mb=300",
        "-print_final_stats=1",
    ]
    _given_away(work)
    said = _run([str(program), *limits, *([f"-dict={words}"] if words.exists() else []), str(reached), str(kept)], work, SECONDS + 300)  # fmt: skip
    if KEPT:
        shutil.copytree(reached, before, dirs_exist_ok=True)
    executed = re.search(r"stat::number_of_executed_units: *(\d+)", said)
    assert executed
    with capsys.disabled():
        print(f"\nfuzz guest-{name}: {executed[1]} inputs")
