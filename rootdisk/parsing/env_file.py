"""Files of variables, as docker reads them with --env-file.

A line is NAME=VALUE, or NAME alone, which takes the value of the caller's environment. Blanks before a line, blank lines and
lines that begin with # are left out. A value is all that follows the first =, quotes and blanks with it. A byte order mark
at the start of the file is left out.
"""

from __future__ import annotations

from rootdisk.errors import BadInput
from rootdisk.text import printable

_BLANK = b" \t\v\f\r"
_MARK = b"\xef\xbb\xbf"


def parse(data: bytes, what: str) -> list[bytes]:
    """Return the variables of a file, NAME=VALUE or NAME each. BadInput names `what` and the line."""
    return [variable for _, variable in numbered(data, what)]


def numbered(data: bytes, what: str) -> list[tuple[int, bytes]]:
    """Return the same with the number of each line."""
    variables = []
    for number, line in enumerate(data.removeprefix(_MARK).split(b"\n"), 1):
        line = line.removesuffix(b"\r").lstrip(_BLANK)
        if not line or line.startswith(b"#"):
            continue
        where = f"{what}, line {number}"
        name = line.partition(b"=")[0]
        if not name:
            raise BadInput(f"{where}: no name before =", "write NAME=VALUE")
        if b"\0" in line:
            raise BadInput(f"{where}: a NUL byte", "variables are text")
        try:
            line.decode()
        except UnicodeDecodeError:
            raise BadInput(f"{where}: not UTF-8", "save the file as UTF-8") from None
        if name.strip(_BLANK) != name or set(name) & set(_BLANK):
            shown = printable(name, 60)
            if name.startswith(b"export "):
                raise BadInput(f"{where}: {shown!r} is shell syntax", "write NAME=VALUE, without export")
            raise BadInput(f"{where}: the name {shown!r} contains blanks", "write NAME=VALUE, without blanks around =")
        variables.append((number, line))
    return variables
