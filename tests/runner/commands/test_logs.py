"""The command logs."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from runner.channel.messages import STDERR, STDOUT
from runner.commands.logs import Writer
from runner.sandbox.output.lines import Piece


def test_output_and_errors_in_one_file_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `runner logs NAME 2>&1 | less`."""
    place = tmp_path / "both"
    with place.open("ab") as out, place.open("ab") as errors:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(errors))
        writer = Writer(timestamps=False, as_json=False)
        for number, kind in enumerate((STDOUT, STDERR, STDERR, STDOUT, STDERR)):
            writer.write(Piece(0.0, kind, b"%d\n" % number))
        writer.flush()
        monkeypatch.undo()
    assert place.read_bytes() == b"0\n1\n2\n3\n4\n"
