"""Volumes: what a command line may say of them, and the filter of who serves them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from rootdisk.errors import BadInput
from runner.machine import virtiofsd
from runner.machine.model import Share
from tests.support.commands import ROOT

WRONG = [
    ("{}", "HOST:GUEST"),
    ("{}:", "HOST:GUEST"),
    (":/a", "HOST:GUEST"),
    ("", "HOST:GUEST"),
    ("{}:a", "must be absolute"),
    ("{}:./a", "must be absolute"),
    ("{}:/", "cannot be /"),
    ("{}://", "cannot be /"),
    ("{}:/./", "cannot be /"),
    ("{}:/proc", "cannot be /"),
    ("{}:/proc/", "cannot be /"),
    ("{}://proc//sys", "cannot be /"),
    ("{}:/sys/fs", "cannot be /"),
    ("{}:/dev", "cannot be /"),
    ("{}:/dev/shm", "cannot be /"),
    ("{}:/.rootdisk", "cannot be /"),
    ("{}:/.rootdisk/init", "cannot be /"),
    ("{}:/run/rootdisk/tls", "cannot be /"),
    ("{}:/a/../proc", "must be plain"),
    ("{}:/..", "must be plain"),
    ("{}:/a\tb", "must be plain"),
    ("{}:/a\nb", "must be plain"),
    ("{}:/a\x1b[0m", "must be plain"),
    ("{}:/\udcff", "must be plain"),
    ("{}:/" + "x" * 256, "must be plain"),
    ("{}:" + "/x" * 600, "1024 bytes"),
    ("{}:/a:ro:rw", "must not contain ':'"),
    ("{}:/a:b", "MODE"),
    ("{}:/a:ro,rw", "MODE"),
    ("{}:/a:z", "leave it out"),
    ("{}:/a:x", "MODE"),
    ("{}:/a:ro,", "MODE"),
    ("{}/none:/a", "does not exist"),
    ("{}/fifo:/a", "is not a directory or a file"),
    ("{}/link:/a", "is not a directory"),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[repr(text[:20]) for text, _ in WRONG])
def test_what_is_no_volume(tmp_path: Path, text: str, words: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("none")
    with pytest.raises(BadInput) as caught:
        virtiofsd.parse([text.format(tmp_path)])
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_two_at_one_place(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="two directories at /a/b"):
        virtiofsd.parse([f"{tmp_path}:/a/b", f"{tmp_path}:/c", f"{tmp_path}:/a//b/./:ro"])


def test_what_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those above others come first, however they were written; a relative directory is the caller's."""
    odd = tmp_path / "a, b\n\udcff"
    odd.mkdir()
    monkeypatch.chdir(tmp_path)
    nothing, both = frozenset[str](), frozenset({"dev", "suid"})
    assert virtiofsd.parse([f"{odd}:/a/b:ro", ".:/a/", f"{odd}:/x:rw,suid,dev"]) == (
        Share("volume0", tmp_path, "/a", False, nothing),
        Share("volume1", odd, "/x", False, both),
        Share("volume2", odd, "/a/b", True, nothing),
    )


# Each names what it tries, and says how it went.
TRIES = """
import os, stat, sys
from runner.machine import virtiofsd as volumes
os.chdir(sys.argv[1])
os.umask(0)
open('old', 'w').close()
volumes.confined(sys.argv[2:])()
old = os.open('old', os.O_RDWR)
tries = {
    'create': lambda: os.open('a', os.O_CREAT | os.O_RDWR, 0o644),
    'chmod': lambda: os.chmod('old', 0o1777),
    'fifo': lambda: os.mkfifo('b'),
    'open': lambda: os.open('old', os.O_RDWR, 0o7777),
    'mkdir': lambda: os.mkdir('c'),
    'suid chmod': lambda: os.chmod('old', 0o4755),
    'suid fchmod': lambda: os.fchmod(old, 0o2755),
    'suid create': lambda: os.open('d', os.O_CREAT | os.O_RDWR, 0o4644),
    'suid create at': lambda: os.open('e', os.O_CREAT | os.O_RDWR, 0o2644, dir_fd=os.open('.', os.O_RDONLY)),
    'suid temporary': lambda: os.open('.', os.O_TMPFILE | os.O_RDWR, 0o4644),
    'suid mknod': lambda: os.mknod('f', stat.S_IFREG | 0o4644),
    'dev character': lambda: os.mknod('g', stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    'dev block': lambda: os.mknod('h', stat.S_IFBLK | 0o600, os.makedev(7, 0)),
}
for name, go in tries.items():
    try:
        go()
    except PermissionError:
        print(name)
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no filter for this processor")
@pytest.mark.parametrize("rights", [set(), {"dev"}, {"suid"}, {"dev", "suid"}], ids=["none", "dev", "suid", "both"])
def test_the_filter(tmp_path: Path, rights: set[str]) -> None:
    if os.geteuid() and "dev" in rights:
        pytest.skip("needs root to make a device")
    argv = [sys.executable, "-c", TRIES, str(tmp_path), *sorted(rights)]
    done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    tried = [line.split('"')[0] for line in TRIES.split("'") if line.startswith(("suid ", "dev "))]
    assert len(tried) == 8
    assert done.stdout.splitlines() == [name for name in tried if name.split()[0] not in rights]
