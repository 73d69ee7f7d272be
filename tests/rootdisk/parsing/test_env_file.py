"""Files of variables as docker reads them."""

from __future__ import annotations

import pytest

from rootdisk.errors import BadInput
from rootdisk.parsing.env_file import parse


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", []),
        (b"A=1\nB=2\n", [b"A=1", b"B=2"]),
        (b"\xef\xbb\xbfA=1", [b"A=1"]),
        (b"# comment\n  # another\n\n \t\nA=1 # no comment\r\n", [b"A=1 # no comment"]),
        (b"  A=1", [b"A=1"]),
        (b"A='1'\nB=\"2\"", [b"A='1'", b'B="2"']),
        (b"A= 1 \nB=x=y\nC=", [b"A= 1 ", b"B=x=y", b"C="]),
        (b"HOME\nA=\xc3\xbc", [b"HOME", b"A=\xc3\xbc"]),
    ],
)
def test_lines(data: bytes, found: list[bytes]) -> None:
    assert parse(data, "f") == found


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"A=1\nexport B=2", "f, line 2: 'export B' is shell syntax"),
        (b"A =1", "f, line 1: the name 'A ' contains blanks"),
        (b"A B", "f, line 1: the name 'A B' contains blanks"),
        (b"\n\n=1", "f, line 3: no name before ="),
        (b"A=\xff", "f, line 1: not UTF-8"),
        (b"A=\0", "f, line 1: a NUL byte"),
    ],
)
def test_errors_name_file_and_line(data: bytes, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(data, "f")
    assert str(caught.value).startswith(said)
