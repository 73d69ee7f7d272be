"""The line on a terminal while a sandbox starts on a disk that is being fetched."""

from __future__ import annotations

import io
import sys

import pytest

from runner.lazy.served import ServedDisk
from runner.lazy.shown import shown_fill
from runner.store.filling import DiskSource
from runner.store.store import Store
from tests.support.faults import FaultProxy
from tests.support.registry import needs_registry
from tests.support.waiting import until

pytestmark = needs_registry


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("boot")  # ends the server
def test_the_line_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, store: Store, source: DiskSource, proxy: FaultProxy
) -> None:
    """It moves while the disk is fetched, and is removed when the program starts. Elsewhere there is none."""
    proxy.pause_s = 0.05
    served = ServedDisk(store, source)
    for terminal in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", terminal)
        with shown_fill(served) as end:
            if terminal.isatty():
                until(lambda: terminal.getvalue().count("starting; disk fetched") > 1)  # noqa: B023 - called at once
            end()
            said = terminal.getvalue()
        assert terminal.getvalue() == said
        assert ("MB" in said) == terminal.isatty()
        assert not said.rpartition("\r")[2].strip()
    served.close()
