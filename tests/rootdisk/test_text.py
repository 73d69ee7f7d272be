"""Text from outside on a terminal: one line, no control characters, bounded."""

import pytest

from rootdisk.text import error_text, printable


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain text, with ümlauts and 中文", "plain text, with ümlauts and 中文"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),  # CSI in one character
        ("\u202egnp.exe", r"\u202egnp.exe"),  # right-to-left override
        ("\u2028", r"\u2028"),
        (r"\n", r"\\n"),
        (b"\xff\xc3\xa9\x00", "\\xffé\\x00"),
        ("\udcff\ud800", r"\xff\ud800"),
        (("a", 1), "('a', 1)"),
    ],
)
def test_what_is_not_printable_is_escaped(value: object, shown: str) -> None:
    assert printable(value) == shown


def test_it_is_bounded() -> None:
    assert printable("x" * 300) == "x" * 300
    assert printable("x" * 301) == "x" * 299 + "…"
    assert len(printable("\n" * 10**6)) == 300
    assert len(printable(b"\x00" * 10**6, limit=10)) == 10
    assert printable("é".encode() * 400) == "é" * 299 + "…"


def test_an_error_s_last_net() -> None:
    assert error_text("a\nb\x1b[31m\n  c \\x1b") == "a\\nb\\x1b[31m\n  c \\x1b"  # what is escaped already stays so
    long = error_text("begin" + "x" * 5000 + "end\n  " + "y" * 5000)
    assert [len(line) for line in long.splitlines()] == [900, 902]
    assert long.startswith("begin")
    assert "end\n" in long
