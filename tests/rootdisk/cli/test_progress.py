"""Progress off a terminal: lines at the start, now and then, and at the end of what takes long; nothing for what is quick."""

from __future__ import annotations

import threading

import pytest

from rootdisk.cli import progress


def test_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_QUIET_S", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.3)
    said = threading.Event()

    def note(lines: progress.Lines) -> None:
        before = lines._say

        def say(what: str, text: str, now: float) -> None:
            before(what, text, now)
            if " of " in text:
                said.set()

        monkeypatch.setattr(lines, "_say", say)

    with progress.Lines() as lines:
        note(lines)
        step = lines.step("fetching a\nb")
        step(1_000_000, 3_000_000)
        assert said.wait(30)
        step(3_000_000, 3_000_000)
    first, *middle, last = capsys.readouterr().err.splitlines()
    assert first == "fetching a\\nb …"
    assert all(line.startswith("fetching a\\nb: 1 of 3 MB") for line in middle)
    assert middle
    assert last.startswith("fetching a\\nb: 3 MB in ")


def test_what_is_quick_or_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown_progress("fetching") as show:
        assert show is not None
        show(1, 1)
    with progress.shown_progress("fetching", quiet=True) as show:
        assert show is None
    assert capsys.readouterr().err == ""
