"""Files are written with the rights that the user wants, and errors name the file that the user knows."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rootdisk.durable import atomic_write
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
