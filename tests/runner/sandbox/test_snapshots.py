"""Snapshots in the store: what is read, what stays, and what is removed."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from rootdisk.errors import BadInput
from runner.sandbox import snapshots
from runner.sandbox.snapshots import Snapshot, Unreadable
from runner.sandbox.state import Spec, state_json
from runner.store.store import Store

HEX = "ab" * 32


def put(store: Store, name: str, **changes: object) -> Path:
    """A snapshot of a disk that has a page with data."""
    folder = store.root / "snapshots" / name
    folder.mkdir(mode=0o700)
    with (folder / "disk.raw").open("wb") as disk:
        disk.truncate(1 << 20)
        disk.seek(8192)
        disk.write(b"data")
    spec = Spec("source", "oci:x", f"sha256:{HEX}", HEX[::-1], HEX, None, None, 1 << 20, 64, 1, keep=True)
    value = {
        "version": 1,
        "created": 5.0,
        "sandbox": "source",
        "state": state_json({}, spec, pid=0, created=1.0, started=2.0, status=None, error=""),
        "disk": snapshots.data_digest(folder / "disk.raw"),
        "machine": {},
        "memory": None,
    }
    (folder / "snapshot.json").write_text(json.dumps({**value, **changes}))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def test_read(store: Store) -> None:
    put(store, "one")
    snapshot = snapshots.find(store, "one")
    assert (snapshot.name, snapshot.source, snapshot.state.spec.name) == ("one", "source", "one")
    assert snapshot.state.uses == {HEX, HEX[::-1]}
    assert snapshots.damage(snapshot) == ""
    assert snapshot.to_json()["has_memory"] is False
    assert snapshots.needed(store) == {HEX, HEX[::-1]}


def test_a_changed_disk(store: Store) -> None:
    with (put(store, "one") / "disk.raw").open("r+b") as disk:
        disk.seek(8192)
        disk.write(b"DATA")
    assert "does not match" in snapshots.damage(snapshots.find(store, "one"))


@pytest.mark.parametrize(
    "changes",
    [
        {"state": 1},
        {"disk": None},
        {"memory": {}},
        {"memory": {"nonce": "1", "ram": [], "state": []}},
        {"machine": 5},
        {"created": "x"},
    ],
)
def test_unreadable(store: Store, changes: dict[str, object]) -> None:
    """It holds everything, it is an error and no traceback, and it can be removed."""
    put(store, "one", **changes)
    (row,) = snapshots.all_of(store)
    assert isinstance(row, Unreadable)
    assert snapshots.needed(store) is None
    assert snapshots.needed_by_all(store) is None
    with pytest.raises(BadInput, match="cannot be read"):
        snapshots.find(store, "one")
    snapshots.check_removable(store, "one", force=False)
    snapshots.remove(store, "one")
    assert snapshots.needed(store) == set()


def test_another_version(store: Store) -> None:
    put(store, "one", version=2)
    assert snapshots.needed(store) is None
    with pytest.raises(BadInput, match="--force"):
        snapshots.check_removable(store, "one", force=False)
    snapshots.check_removable(store, "one", force=True)


@pytest.mark.parametrize("name", ["", ".", "..", "../sandboxes", ".new-0123456789abcdef", "a/b", "no", "nul\0"])
def test_no_other_place(store: Store, name: str) -> None:
    (store.root / "snapshots/.new-0123456789abcdef").mkdir()
    assert snapshots.find_any(store, name) is None
    with pytest.raises(BadInput):
        snapshots.check_removable(store, name, force=True)


def test_what_a_killed_maker_has_left(store: Store) -> None:
    """It goes if nobody holds its lock; what somebody makes stays, and so does what has its name."""
    kept = put(store, "one")
    left, made, fresh = (store.root / "snapshots" / f".new-{n:016x}" for n in range(3))
    for folder in (left, made):
        folder.mkdir()
        (folder / "lock").touch()
    fresh.mkdir()
    lock = os.open(made / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    snapshots.sweep(store)
    assert [folder.exists() for folder in (kept, left, made, fresh)] == [True, False, True, True]
    os.close(lock)
    os.utime(fresh, (0, 0))
    snapshots.sweep(store)
    assert list(snapshots.all_of(store)) == [snapshots.find(store, "one")]
    assert isinstance(snapshots.find(store, "one"), Snapshot)
    assert os.listdir(store.root / "snapshots") == ["one"]
