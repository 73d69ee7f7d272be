"""bench's parts, by doit and by hand."""

from __future__ import annotations

import pytest

from bench import __main__ as table


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--only", "start,guest"], ["start", "guest"]),
        (["--only", "start", "guest"], ["start", "guest"]),
        (["--only", "start", "--only", "guest"], ["start", "guest"]),
        ([], list(table.PARTS)),
    ],
)
def test_only(words: list[str], parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(table, "measure", lambda _, only, *__: chosen.extend(only))
    assert table.main(words) == 0
    assert chosen == parts


def test_a_wrong_part() -> None:
    with pytest.raises(SystemExit):
        table.main(["--only", "start,nothing"])
