"""Results as rows: our figure relative to that of another tool, or to a limit, with its goal."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.measure import Measured, Run, ratios, spread

Spread = tuple[float, float, float]

FIGURES: Mapping[str, Callable[[Run], float]] = {
    "wall": lambda run: run.wall_s,
    "cpu": lambda run: run.cpu_s,
    "written": lambda run: float(run.written_bytes),
}


@dataclass(frozen=True, slots=True)
class Row:
    """`goals` by figure: of wall and cpu at most that ratio, or with nobody to compare with that many seconds; `peak` bytes.

    `same` says how the outputs compare. `fault` where they differ: then no goal is met, whatever the times.
    """

    work: str
    against: str = ""
    goals: Mapping[str, float] = field(default_factory=dict)
    ours: Measured | None = None
    theirs: Measured | None = None
    same: str = ""
    fault: bool = False
    missing: str = ""

    def seconds(self, figure: str, side: Measured) -> float:
        """Our or their median."""
        return statistics.median(FIGURES[figure](run) for run in side.runs)

    def spread(self, figure: str) -> Spread | None:
        """min, median, max of the paired ratios; of our own figure where there is nobody to compare with."""
        if self.ours is None:
            return None
        ours = [FIGURES[figure](run) for run in self.ours.runs]
        if self.theirs is None:
            return spread(ours)
        theirs = [FIGURES[figure](run) for run in self.theirs.runs]
        return ratios(ours, theirs) if all(theirs) else None

    def met(self, figure: str) -> bool | None:
        """None: there is no goal, or nothing was measured."""
        if figure not in self.goals or self.ours is None:
            return None
        found = self.spread(figure) if figure in FIGURES else None
        value = found[1] if found else float(self.ours.peak_bytes)
        return value <= self.goals[figure] and not self.fault

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"work": self.work, "against": self.against}
        if self.ours is None:
            return {**value, "missing": self.missing}
        for figure in FIGURES:
            if found := self.spread(figure):
                value[f"{figure}_ratio" if self.theirs else figure] = [round(number, 5) for number in found]
        for name, side in (("ours", self.ours), ("theirs", self.theirs)):
            if side:
                medians = {figure: round(self.seconds(figure, side), 4) for figure in FIGURES}
                value[name] = {**medians, "peak": side.peak_bytes, "runs": len(side.runs)}
        value["goals"] = {figure: {"at_most": goal, "met": self.met(figure)} for figure, goal in self.goals.items()}
        return {**value, "same": self.same, "fault": self.fault}


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the curve: the size of an image in files or bytes, and what its build took."""

    unit: str
    size: int
    wall_s: float
    cpu_s: float
    peak_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}
