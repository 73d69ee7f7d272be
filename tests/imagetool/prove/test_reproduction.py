"""`doit reproduce` says that builds are the same, and finds what is planted: where they differ, and by what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import run
from tests.support.compilers import real_path
from tests.support.copies import plant

DIMENSIONS = (
    *("user name", "time zone", "locale", "umask", "working directory", "hash seed", "number of threads"),
    *("order of directories", "uid", "clock"),
)

ZONE = "/usr/share/zoneinfo/Etc/GMT-14"


def reproduce(copied: Path, **env: str) -> tuple[int, str]:
    environment: dict[str, Any] = {"PYTHONPATH": str(copied), "PATH": real_path(), **env}
    done = run("doit", "reproduce", cwd=copied, **environment)
    return done.returncode, done.stdout + done.stderr


def test_every_digest_is_the_same_whatever_else_is_different(copied: Path) -> None:
    status, said = reproduce(copied)
    assert status == 0, said
    tried = next(line for line in said.splitlines() if "built twice" in line)
    assert [name for name in DIMENSIONS if name not in tried] == []
    assert "every digest is the same: sha256:" in said
    assert not (copied / "cache/app/reproduce").exists()


@pytest.mark.nightly  # two more builds
def test_what_is_not_changed_is_not_said_to_be(copied: Path) -> None:
    """A locale by another name, the same time zone by another name, the same user: no build could show a difference."""
    somebody = {"USER": "somebody", "LOGNAME": "somebody", "HOME": "/nonexistent"}
    plant(copied, "imagetool/prove/reproduction.py", '"LC_ALL": _locale(), "LANG": _locale()', '"LC_ALL": "C.utf8"')
    status, said = reproduce(
        copied,
        TZ="Etc/GMT-14" if Path(ZONE).exists() else "XXX-14",
        PYTHONHASHSEED="4242",
        LC_ALL="C.UTF-8",
        **somebody,
    )
    assert status == 0, said
    tried = next(line for line in said.splitlines() if "built twice" in line)
    same = {"time zone", "hash seed", "locale", "user name"}
    assert {name for name in DIMENSIONS if name in tried} == set(DIMENSIONS) - same
    for name in same:
        assert f"not tried: another {name}: it is the same in both" in said


@pytest.mark.nightly
def test_what_is_planted_is_found(copied: Path) -> None:
    """Two faults at once; each is found, and what each depends on."""
    plant(
        copied,
        "imagetool/layout/additions.py",
        "read_only = Inode(stat.S_IFREG | 0o444)",
        "import os; read_only = Inode(stat.S_IFREG | 0o444, os.getuid())",
    )
    plant(
        copied,
        "imagetool/build/artifact.py",
        "uuid=built.uuid,",
        'uuid=built.uuid[:-2] + str(10 + abs(__import__("time").timezone) // 3600),',
    )
    said = found(copied, "time zone", "uid")
    assert "file /.rootdisk/env: changed: owner " in said
    assert "config: disk.uuid: " in said


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("module", "old", "new", "words", "dimension"),
    [
        (
            "imagetool/packing/pack.py",
            "        return make_frame(chunk.render(sources))",
            (
                "        raw = chunk.render(sources)\n"
                "        made = __import__('zstandard').ZstdCompressor(level=crew.size).compress(raw)\n"
                "        return make_frame(raw)._replace(data=made)"
            ),
            "equal, but compressed differently",
            "number of threads",
        ),
        (
            "imagetool/ext4/superblock.py",
            "s_mkfs_time=time,",
            "s_mkfs_time=int(open('/proc/self/status').read().split('Umask:')[1].split()[0]),",
            "the first is block 0 at byte 1288: file-system metadata",
            "umask",
        ),
    ],
    ids=["frames", "block"],
)
def test_what_is_planted_deeper_is_found(
    copied: Path, module: str, old: str, new: str, words: str, dimension: str
) -> None:
    plant(copied, module, old, new)
    assert words in found(copied, dimension)


def found(copied: Path, *dimensions: str) -> str:
    """What `doit reproduce` says when it finds a difference that depends on `dimensions`."""
    status, said = reproduce(copied)
    assert status != 0
    depends = [line for line in said.splitlines() if "it depends on" in line]
    assert depends == [f"app: it depends on: {dimension}" for dimension in dimensions], said
    assert "the same inputs gave sha256:" in said
    assert "not to be seen" not in said
    assert (copied / "cache/app/reproduce/other/layout/index.json").exists()
    return said
