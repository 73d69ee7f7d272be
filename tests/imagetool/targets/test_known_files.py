"""A file that this process has hashed is published without being read again; one that has changed since is not believed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from imagetool.packing import known_files
from imagetool.targets.layout import LayoutTarget
from rootdisk.errors import DigestMismatch
from rootdisk.oci.documents import Descriptor, Digest

DATA = b"some bytes of a blob"
BLOB = Descriptor("application/octet-stream", Digest.of(DATA), len(DATA))
LONG_AGO, NOT_YET = 10**9, 10**11


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def _noted(path: Path, digest: Digest = BLOB.digest) -> None:
    with path.open("rb") as stream:
        known_files.note(stream.fileno(), digest)


def _is_known(path: Path, descriptor: Descriptor = BLOB) -> bool:
    with path.open("rb") as stream:
        return known_files.is_known(stream.fileno(), descriptor)


def test_only_what_was_noted_is_known(file: Path) -> None:
    assert not _is_known(file)
    _noted(file)
    assert _is_known(file)
    os.link(file, file.with_name("link"))
    assert _is_known(file.with_name("link"))
    assert not _is_known(file, BLOB._replace(digest=Digest.of(b"other")))
    assert not _is_known(file, BLOB._replace(size=BLOB.size - 1))


def test_a_changed_file_is_not_known(file: Path) -> None:
    _noted(file)
    with file.open("r+b") as stream:
        stream.write(b"S")
    assert not _is_known(file)


def test_a_file_that_may_change_within_a_tick_of_the_clock_is_not_noted(file: Path) -> None:
    os.utime(file, (NOT_YET, NOT_YET))
    _noted(file)
    assert not _is_known(file)


def test_a_layout_reads_what_is_not_known(tmp_path: Path, file: Path) -> None:
    _noted(file)
    with file.open("r+b") as stream:
        stream.write(b"S")
    with contextlib.closing(LayoutTarget(tmp_path / "layout")) as target:
        with pytest.raises(DigestMismatch):
            target.push_blob(BLOB, file)
        assert not target.has_blob(BLOB)


def test_a_layout_does_not_read_what_is_known(tmp_path: Path, file: Path) -> None:
    """Seen by a digest that is not the file's: only whoever reads it finds out."""
    wrong = BLOB._replace(digest=Digest.of(b"other"))
    _noted(file, wrong.digest)
    with contextlib.closing(LayoutTarget(tmp_path / "layout")) as target:
        target.push_blob(wrong, file)
        assert not target.has_blob(wrong)
