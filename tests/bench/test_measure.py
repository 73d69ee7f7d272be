"""The bench's own instruments: memory of known size, disks that differ."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.measure import Contender, Failed, interleaved, run
from bench.same import compare

MIB = 1 << 20


def nothing() -> None:
    pass


def python(code: str) -> Contender:
    return Contender("python", [sys.executable, "-c", code], nothing)


def test_peak_memory_is_the_childs_and_not_ours() -> None:
    ours = bytearray(os.urandom(MIB)) * 200
    assert run(Contender("true", ["true"], nothing)).rss_bytes < 20 * MIB
    assert 100 * MIB < run(python(f"bytes([1]) * {100 * MIB}")).rss_bytes < 130 * MIB
    assert len(ours) == 200 * MIB


def test_memory_of_several_processes_is_added_up() -> None:
    code = f"import os, time; os.fork(); block = bytes([1]) * {60 * MIB}; time.sleep(2)\ntry: os.wait()\nexcept OSError: pass"
    (found,) = interleaved([python(code)], 0)
    assert found.runs[0].rss_bytes < 90 * MIB
    assert 120 * MIB < found.peak_bytes < 180 * MIB


def test_time_and_written_bytes(tmp_path: Path) -> None:
    found = run(python(f"import time; time.sleep(0.2); open({str(tmp_path / 'x')!r}, 'wb').write(bytes({8 * MIB}))"))
    assert 0.2 < found.wall_s < 60
    assert 8 * MIB <= found.written_bytes < 9 * MIB


def test_a_failure_says_who_and_why() -> None:
    with pytest.raises(Failed, match="python failed: no luck"):
        run(python("print('no luck'); raise SystemExit(3)"))


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_each_kind_of_difference_is_found(tmp_path: Path) -> None:
    trees = [tmp_path / "a", tmp_path / "b"]
    for number, tree in enumerate(trees):
        tree.mkdir()
        for name in ("bytes", "mode", "owner", "time", "attributes", "equal"):
            (tree / name).write_bytes(b"12")
            os.utime(tree / name, (1, 1))
        (tree / "bytes").write_bytes(b"1%d" % number)
        os.utime(tree / "bytes", (1, 1))
        (tree / "mode").chmod(0o640 + number)
        os.chown(tree / "owner", number, number)
        os.utime(tree / "time", (number, number))
        os.setxattr(tree / "attributes", "user.a", b"%d" % number)
        os.symlink(str(number), tree / "target")
        os.utime(tree / "target", (1, 1), follow_symlinks=False)
        (tree / f"only-{number}").touch()
    (trees[0] / "one").write_bytes(b"")
    os.link(trees[0] / "one", trees[0] / "two")
    for name in ("one", "two"):
        (trees[1] / name).write_bytes(b"")
    for tree in trees:
        for name in ("one", "two"):
            os.utime(tree / name, (1, 1))
        disk = tree.with_suffix(".ext4")
        command = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(disk), "8M"]
        subprocess.run(command, check=True, env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
    found = {
        difference.path: difference.names
        for difference in compare(*(tree.with_suffix(".ext4") for tree in trees))  # type: ignore[arg-type]
    }
    changed = {name: (name,) for name in ("bytes", "mode", "owner", "time", "attributes", "target")}
    assert found == {**changed, "two": ("links",), "only-0": ("only on one",), "only-1": ("only on one",)}
