"""Small files that a user names."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from rootdisk.cli.files import read_small_file
from rootdisk.errors import BadInput


def test_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_small_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(BadInput, match=r"--option: .*/file is larger than 4 bytes: is it the right file\?"):
        read_small_file(tmp_path / "file", 4, option="--option")


def test_a_device_without_end_is_refused_at_the_limit() -> None:
    with pytest.raises(BadInput, match="/dev/zero is larger than 1MiB"):
        read_small_file(Path("/dev/zero"), 1 << 20)


def test_links_and_pipes_are_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").write_bytes(b"1")
    assert read_small_file(tmp_path / "link", 5) == b"1"
    reader, writer = os.pipe()
    os.write(writer, b"secret")
    os.close(writer)
    assert read_small_file(Path(f"/dev/fd/{reader}"), 100) == b"secret"
    os.close(reader)


def test_a_fifo_without_a_writer_is_not_waited_for_without_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BadInput, match=r"^--tls-key: .*/fifo is a FIFO, and no program writes to it$"):
        read_small_file(tmp_path / "fifo", 5, option="--tls-key", wait_s=0.01)


@pytest.mark.parametrize("said", [b"", b"secret"])
def test_a_slow_writer_of_a_fifo_has_its_time(tmp_path: Path, said: bytes) -> None:
    """It has the FIFO open, and writes when the wait for it is over."""
    os.mkfifo(tmp_path / "fifo")
    held = os.open(tmp_path / "fifo", os.O_RDWR)  # so that the writer need not wait for the reader
    writer = os.open(tmp_path / "fifo", os.O_WRONLY)

    def write() -> None:
        os.write(writer, said)
        os.close(writer)
        os.close(held)

    later = threading.Timer(0.2, write)
    later.start()
    assert read_small_file(tmp_path / "fifo", 100, wait_s=0.01) == said
    later.join()


def test_the_message_has_what_the_user_wrote(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^cannot read \./a\\x1bb: No such file or directory$"):
        read_small_file(tmp_path / "a", 5, shown="./a\x1bb")
    with pytest.raises(BadInput, match=r"^--key: cannot read .*: Is a directory"):
        read_small_file(tmp_path, 5, option="--key")
