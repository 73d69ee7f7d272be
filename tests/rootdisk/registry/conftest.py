"""A registry that has a manifest with one large blob."""

from __future__ import annotations

import pytest

from tests.support.blobs import push
from tests.support.registry import RunningRegistry


@pytest.fixture(scope="module")
def registry(registry: RunningRegistry) -> RunningRegistry:
    push(f"{registry.name}/a/b:v1", registry.options)
    return registry
