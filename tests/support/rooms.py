"""Print which part of each room the tests ran; exit 2 if the whole is below the floor in pyproject.toml.

`./quickstart coverage` runs this after the tests.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter
from pathlib import Path, PurePath

from coverage import Coverage
from coverage.exceptions import NoDataError

from tests.support.commands import ROOT


def room(path: str) -> str:
    """`runner/store` for a module of that room, `runner` for one beside the rooms."""
    parts = PurePath(path).parts
    return "/".join(parts[:2] if len(parts) > 2 else parts[:1])


def rooms(measured: Coverage) -> dict[str, tuple[int, int]]:
    """How many statements of each room ran, and how many there are."""
    ran: Counter[str] = Counter()
    there: Counter[str] = Counter()
    for path in sorted(measured.get_data().measured_files()):
        name, statements, _, missing, _ = measured.analysis2(path)
        place = room(str(Path(name).relative_to(ROOT)))
        there[place] += len(statements)
        ran[place] += len(statements) - len(missing)
    return {place: (ran[place], there[place]) for place in sorted(there) if there[place]}


def main() -> int:
    measured = Coverage()
    measured.load()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            whole = measured.report()
    except NoDataError:
        print("nothing was measured: run ./quickstart coverage")
        return 1
    for place, (ran, there) in rooms(measured).items():
        print(f"{place:24} {100 * ran / there:6.1f} %  of {there:6,} statements")
    floor = float(measured.get_option("report:fail_under") or 0)  # type: ignore[arg-type]
    print(f"{'all':24} {whole:6.1f} %  the floor is {floor:g} %")
    return 2 if whole < floor else 0


if __name__ == "__main__":
    sys.exit(main())
