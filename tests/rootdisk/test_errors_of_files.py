"""Errors of files name the file that the user knows."""

from __future__ import annotations

import os
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


def test_bytes_are_no_python() -> None:
    assert describe_error(FileNotFoundError(2, "No such file or directory", b"nosuch\xff")).startswith("nosuch")


def test_an_error_without_a_file_says_how_to_find_it() -> None:
    assert describe_error(PermissionError(13, "Permission denied")) == "Permission denied: --debug shows where"
