"""The file of events, whatever is in its place: commands go on, and read only what the store has written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.sandbox.output import event_log
from runner.sandbox.output.event_log import happened
from runner.store import events
from runner.store.store import Store

READY = {"time": 5.0, "event": "ready", "sandbox": "web"}
LINE = json.dumps(READY).encode() + b"\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def read(store: Store) -> list[dict[str, object]]:
    return list(happened(store, 0, time.time()))


def a_link(path: Path) -> None:
    path.with_name("other").write_bytes(LINE)
    path.symlink_to("other")


@pytest.mark.parametrize("make", [os.mkfifo, a_link, Path.mkdir])
def test_it_is_not_a_file(store: Store, make: Callable[[Path], None]) -> None:
    make(store.root / "events")
    assert events.last_of(store.root, "web", 0) is None
    events.Events(store.root, "web").tell("ready")
    with pytest.raises(OSError, match=r"is not a file|is a symbolic link"):
        read(store)


@pytest.mark.parametrize(
    "damage",
    [
        b"x" * (1 << 20),
        b"[" * (1 << 20),
        os.urandom(1 << 16).replace(b"\n", b""),
        b'{"time": NaN, "event": "ready"}',
        b'{"time": %s, "event": "ready"}' % (b"9" * 5000),
        b'{"time": 1, "event": ["ready"]}',
        b'{"time": 1, "event": "ready", "more": "%s"}' % (b"x" * events.LINE_MAX_BYTES),
    ],
    ids=range(7),
)
def test_damaged(store: Store, damage: bytes) -> None:
    (store.root / "events").write_bytes(LINE + damage + b"\n" + LINE + damage)
    assert read(store) == [READY, READY]
    assert events.last_of(store.root, "web", 0) == READY


def test_a_line_without_end_is_not_kept_in_memory(store: Store) -> None:
    """Each piece was joined with all before it: 100 MB took minutes."""
    with (store.root / "events").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(64 << 20)
        file.write(b"\n" + LINE)
    assert read(store) == [READY]
    assert events.last_of(store.root, "web", 0) == READY


def test_two_readers_see_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "FOLLOW_S", 0.001)
    both = [happened(store, 0, None) for _ in range(2)]
    teller = events.Events(store.root, "web")
    for number in range(40):
        teller.tell("exec", session=number)
        if number == 20:
            os.replace(store.root / "events", store.root / "events.old")
        assert [next(reader)["session"] for reader in both] == [number, number]
