"""What the store has of sandboxes and snapshots, by the API: no machine runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from rootdisk.errors import BadInput
from runner import AsyncSandbox, Sandbox, remove_snapshot
from runner.network.audit import LOG_NAME
from runner.sandbox.state import Spec, state_json
from runner.store.store import Store

SPEC = Spec("web", "oci:x", "sha256:" + "0" * 64, "0" * 64, "0" * 64, None, None, 1, 64, 1, keep=True)
ROW = {"host": "pypi.org", "port": 443, "verdict": "allowed", "sent": 1, "received": 2}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    store = Store.open(tmp_path / "store")
    folder = store.sandboxes / "web"
    folder.mkdir()
    (folder / "lock").touch(0o600)
    (folder / "state.json").write_text(json.dumps(state_json({}, SPEC, pid=0, created=1.0, started=1.0)))
    return store.root


def test_connections(place: Path) -> None:
    sandbox = Sandbox.get("web", store=place)
    with pytest.raises(BadInput, match="no record of connections"):
        next(sandbox.connections())
    rows = [{**ROW, "time": float(number)} for number in range(4)]
    lines = [json.dumps(row) for row in rows]
    (place / "sandboxes/web" / LOG_NAME).write_text("\n".join([*lines[:2], '{"time": 1', *lines[2:], ""]))
    assert list(sandbox.connections()) == rows
    assert list(sandbox.connections(tail=2)) == rows[2:]
    assert list(sandbox.connections(since=1, until=2, follow=True)) == rows[1:3]  # it does not run: no more comes

    async def found() -> list[dict[str, object]]:
        return [row async for row in (await AsyncSandbox.get("web", store=place)).connections(tail=3)]

    assert asyncio.run(found()) == rows[1:]


def test_snapshots_are_removed(place: Path) -> None:
    folder = place / "snapshots/saved"
    folder.mkdir()
    (folder / "snapshot.json").write_text('{"version": 99}')
    for name in ("", "none", "../sandboxes/web", "..", ".", "a\0b"):
        with pytest.raises(BadInput, match="no snapshot"):
            remove_snapshot(name, force=True, store=place)
    with pytest.raises(BadInput, match="is not removed"):
        remove_snapshot("saved", store=place)
    remove_snapshot("saved", force=True, store=place)
    assert not folder.exists()
    assert (place / "sandboxes/web/state.json").exists()
