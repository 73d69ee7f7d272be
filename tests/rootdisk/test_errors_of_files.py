"""Files are written with the rights that the user wants, and errors name the file that the user knows."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest

from imagetool.targets.open import open_target
from rootdisk.durable import atomic_write
from rootdisk.oci.documents import Descriptor, Digest
from rootdisk.oci.reference import parse_reference
from rootdisk.text import describe_error
from tests.support.commands import run


def test_a_temporary_file_is_never_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing/x", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(OSError) as caught:
            atomic_write(path, b"")
        assert describe_error(caught.value).startswith(f"{path}: ")
    assert os.listdir(tmp_path) == ["folder"]
    done = run("imagetool", "map", "-o", "/nosuch/x", str(tmp_path / "folder"), cwd=tmp_path)
    assert ".x." not in done.stderr


def test_a_layout_that_cannot_grow_is_named(tmp_path: Path) -> None:
    """As on a full disk: before, nothing said where."""
    content = bytes(64 << 10)
    blob = Descriptor("a/b", Digest.of(content), len(content))
    target = open_target(parse_reference(f"oci:{tmp_path}/out:1"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError) as caught:
            target.push_blob(blob, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        target.close()
    assert describe_error(caught.value) == f"{tmp_path}/out/blobs/sha256: File too large"
    assert os.listdir(tmp_path / "out/blobs/sha256") == []


@pytest.mark.parametrize(("umask", "wanted"), [(0o022, 0o644), (0o077, 0o600), (0o777, 0o600)])
def test_the_umask_keeps_others_out(tmp_path: Path, umask: int, wanted: int) -> None:
    """As with the output of any program; the owner can always read what was written."""
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "out", b"data")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == wanted


def test_bytes_are_no_python() -> None:
    assert describe_error(FileNotFoundError(2, "No such file or directory", b"nosuch\xff")).startswith("nosuch")


def test_an_error_without_a_file_says_how_to_find_it() -> None:
    assert describe_error(PermissionError(13, "Permission denied")) == "Permission denied: --debug shows where"
