"""Every parser of foreign bytes: its kept inputs and some by chance in every run of the tests, and at night for long.

Any exception but RootdiskError, more than 2 s of processor time and more than 300 MB of memory are faults.
`./quickstart nightly -k fuzz` gives each target FUZZ_SECONDS (120), or goes on as long as is said. FUZZ_CORPUS is a directory
where inputs that reach far are kept from night to night.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.fuzz import corpus, harness, table
from tests.fuzz.options import KEPT, SECONDS


def report(outcome: harness.Outcome) -> str:
    return f"after {outcome.count} inputs\n\n" + "\n\n".join(outcome.faults)


@pytest.mark.parametrize("target", table.TARGETS)
def test_fuzz_some(target: str, tmp_path: Path) -> None:
    few = table.load(target).few
    outcome = harness.run(target, tmp_path, count=few)
    assert not outcome.faults, report(outcome)
    assert outcome.count > few
    # Neither all are refused nor all are read, so that it is the parser that is tried.
    assert outcome.refused < outcome.count
    assert outcome.refused or not table.load(target).refuses


@pytest.mark.nightly
@pytest.mark.parametrize("target", table.TARGETS)
def test_fuzz_long(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(KEPT, target) if KEPT else tmp_path
    seed = int(os.environ.get("FUZZ_SEED", random.SystemRandom().getrandbits(31)))
    outcome = harness.run(target, folder, seconds=SECONDS, seed=seed)
    with capsys.disabled():
        how = "by coverage" if harness.is_guided() else "by chance"
        print(
            f"\nfuzz {target}: {outcome.count} inputs {how}, {outcome.refused} refused, {len(outcome.faults)} faults, seed {seed}"
        )
    assert not outcome.faults, report(outcome)


def test_the_corpus_is_of_targets() -> None:
    names = {path.name for path in corpus.FOLDER.iterdir() if not path.name.startswith("guest-")}
    assert names <= set(table.TARGETS)


@pytest.mark.parametrize("module", table.MODULES)
def test_the_table_is_whole(module: str) -> None:
    for name in table.MODULES[module]:
        assert table.load(name).seeds()
