"""The guest's channel code on the host, under a fuzzer: whatever the runner sends, the init goes on and keeps to its rules.

tests/support/fuzz_channel.c says what is tried; tests/corpus/channel/ holds inputs that reach far. What the fuzzer finds is
kept there, and every run of the tests tries it again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUEST = ROOT / "imagetool/guest"
HARNESS = ROOT / "tests/support/fuzz_channel.c"
CORPUS = ROOT / "tests/corpus/channel"
SECONDS = int(float(os.environ.get("FUZZ_SECONDS", "200")))
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-fno-sanitize-recover=undefined", f"-I{GUEST}")
# What is no file's or process's of the host: programs are not started.
STUBS = ("-Dfork=fuzz_fork", "-Dpipe2=fuzz_pipe2")


def build(compiler: str, sanitizers: str, folder: Path, *more: str) -> Path:
    """The harness with the guest's own sources."""
    program, part = folder / "fuzz_channel", folder / "process.o"
    flags = (compiler, *FLAGS, f"-fsanitize={sanitizers}")
    for command in (
        [*flags, *STUBS, "-c", str(GUEST / "process.c"), "-o", str(part)],
        [*flags, *more, str(HARNESS), str(part), "-o", str(program)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return program


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_what_was_found_once_does_no_harm(tmp_path: Path) -> None:
    program = build("gcc", "address,undefined", tmp_path, "-DWITH_MAIN")
    kept = sorted(map(str, CORPUS.iterdir()))
    assert kept
    done = subprocess.run([str(program), *kept], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.nightly
def test_a_runner_that_sends_anything(tmp_path: Path) -> None:
    """By libFuzzer, FUZZ_SECONDS long; new inputs that reach further are left in its directory."""
    clang = shutil.which("clang") or shutil.which("clang-14")
    if clang is None:
        pytest.skip("clang is not installed: apt-get install clang libclang-rt-14-dev")
    program = build(clang, "fuzzer,address,undefined", tmp_path)
    found = tmp_path / "found"
    found.mkdir()
    limits = (f"-max_total_time={SECONDS}", "-max_len=4096", "-timeout=2", "-rss_limit_mb=300", "-print_final_stats=1")
    done = subprocess.run(
        [str(program), *limits, f"-dict={CORPUS.with_suffix('.dict')}", str(found), str(CORPUS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS + 300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    executed = re.search(r"stat::number_of_executed_units: *(\d+)", done.stderr)
    assert executed
    print(f"{executed[1]} inputs in {SECONDS} s")
