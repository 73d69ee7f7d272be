"""Limits of a store's space: what is new is refused, and a guest is held before the limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.sandbox.keeper.room import Room
from runner.store import limits
from runner.store.limits import Limits
from runner.store.pull import pull
from runner.store.store import Store


def test_a_reserve_refuses_fetches_and_sandboxes(store: Store, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch() -> None:
        pull(store, parse_reference(layout), RegistryOptions(), Platform.host()).release()

    monkeypatch.setenv("ROOTDISK_STORE_RESERVE", "1000t")
    with pytest.raises(RootdiskError, match=r"must stay free: runner prune, or lower ROOTDISK_STORE_RESERVE"):
        fetch()
    with pytest.raises(RootdiskError, match="must stay free"):
        limits.check(store.root, is_sandbox=True)
    assert not list((store.root / "disks").glob("*.raw"))
    monkeypatch.setenv("ROOTDISK_STORE_RESERVE", "1m")
    fetch()
    monkeypatch.setenv("ROOTDISK_STORE_RESERVE", "much")
    with pytest.raises(BadInput, match="ROOTDISK_STORE_RESERVE: "):
        limits.check(store.root)


def test_a_quota_counts_all_disks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        folder = store.sandboxes / f"box-{number}"
        folder.mkdir()
        (folder / "disk.qcow2").write_bytes(os.urandom(1 << 20))
        with (folder / "other").open("wb") as file:
            file.truncate(1 << 40)
    assert 3 << 20 <= limits.used(store.sandboxes) < 4 << 20
    monkeypatch.setenv("ROOTDISK_STORE_QUOTA", "10m")
    limits.check(store.root, is_sandbox=True)
    monkeypatch.setenv("ROOTDISK_STORE_QUOTA", "3m")
    with pytest.raises(RootdiskError, match="raise ROOTDISK_STORE_QUOTA"):
        limits.check(store.root, is_sandbox=True)
    limits.check(store.root, 1 << 20)  # an artifact is no sandbox


def test_a_guest_is_held_before_a_limit(tmp_path: Path) -> None:
    folder = tmp_path / "box"
    folder.mkdir()
    disk = folder / "disk.raw"
    room = Room(folder, 64 << 20, Limits(quota=8 << 20))
    assert not room.look(1.0)
    assert not room.is_held
    disk.write_bytes(os.urandom(15 << 19))  # 7.5 of 8 MiB
    room.look(room.next_look)
    assert room.is_held
    assert "used up their quota" in str(room.to_say(2.0))
    disk.write_bytes(b"")
    room.look(room.next_look)
    assert not room.is_held
    room = Room(folder, 64 << 20, Limits(reserve=1 << 60))
    room.look(1.0)
    assert room.is_held
    assert "the host's disk is full" in str(room.text)
