"""Small files that a user names on a command line or in images.toml."""

from __future__ import annotations

from pathlib import Path

from rootdisk.cli.sizes import size_text
from rootdisk.errors import BadInput
from rootdisk.text import printable


def read_small_file(path: Path, max_bytes: int, *, option: str = "", shown: str = "") -> bytes:
    """Read a file that a user names. It may be a link or a pipe, as shells make for `<(…)`.

    Args:
        path: The file.
        max_bytes: Larger files are refused, and not read further.
        option: Stands before the message if it is given, such as `--env-file`.
        shown: What the user wrote, if that is not `path`.

    Raises:
        BadInput: It cannot be read, or is too large.
    """
    name = printable(shown or path)
    place = f"{option}: " if option else ""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as err:
        raise BadInput(f"{place}cannot read {name}: {err.strerror}") from err
    if len(data) > max_bytes:
        raise BadInput(f"{place}{name} is larger than {size_text(max_bytes)}", "is it the right file?")
    return data
