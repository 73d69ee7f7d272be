"""An artifact that a policy is asked about."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.store.store import Store
from tests.support.artifacts import BARE, with_boot
from tests.support.faults import FaultProxy
from tests.support.registry import RunningRegistry
from tests.support.signed_places import Place


@pytest.fixture
def place(
    request: pytest.FixtureRequest, store: Store, registry: RunningRegistry, proxy: FaultProxy, tmp_path: Path
) -> Place:
    name = request.node.name.partition("[")[0].replace("_", "-")
    return Place(registry, proxy, name, with_boot(BARE, labels={"test": request.node.name}), tmp_path)
