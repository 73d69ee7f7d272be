"""Snapshots in the store: what is read, what stays, and what is removed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Platform
from runner.cli import main
from runner.machine import qemu
from runner.machine.model import Machine
from runner.sandbox import forks, machines, snapshot_taking, snapshots
from runner.sandbox.snapshots import Snapshot, Unreadable
from runner.sandbox.state import Spec, State, state_json
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


def saved_with(store: Store, **changes: object) -> Snapshot:
    """A snapshot with memory that was taken with this host's QEMU, but for the changes."""
    machine = Machine(
        Platform.host(), "tcg", 64, 1, None, None, "", "", Path(), "raw", 0, None, False, "user",
        kind=qemu.kind(Platform.host(), store.root / "qemu.json"), is_own_network=True,
    )  # fmt: skip
    memory = {"nonce": "0" * 32, "ram": [1, "x"], "state": [1, "x"]}
    put(store, "saved", machine={**machines.identity(machine), **changes}, memory=memory)
    return snapshots.find(store, "saved")


def test_the_same_machine(store: Store) -> None:
    machines.check(saved_with(store), store, Platform.host())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"qemu": ["/usr/bin/qemu-system-x86_64", 1, 2]}, "another QEMU"),
        ({"kind": "pc"}, "another machine type"),
        ({"processor": "ab"}, "another processor"),
        ({"accelerator": "kvm", "processor": "ab"}, "another processor"),
        ({"network": "other"}, "another network"),
    ],
)
def test_another_machine(store: Store, changes: dict[str, object], what: str) -> None:
    snapshot = saved_with(store, **changes)
    with pytest.raises(BadInput, match=f"snapshot saved was taken with {what}.*--cold"):
        machines.check(snapshot, store, Platform.host())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"volumes": (("/a", "/b", False),)}, "has volumes.*--without-memory"),
        ({"allow": ("example.org",)}, "--allow.*--without-memory"),
        ({"backend": "krun"}, "libkrun"),
    ],
)
def test_what_cannot_be_saved(store: Store, changes: dict[str, object], why: str) -> None:
    spec = Spec("source", "oci:x", f"sha256:{HEX}", HEX, HEX, None, None, 1 << 20, 64, 1)._replace(**changes)  # type: ignore[arg-type]
    state = State(store.sandboxes / "source", spec, True, 1, 1.0, 1.0, None, None, "")
    with pytest.raises(BadInput, match=why):
        snapshot_taking.take(store, state, "new")
    assert os.listdir(store.root / "snapshots") == []


def test_one_that_does_not_run(store: Store) -> None:
    spec = Spec("source", "oci:x", f"sha256:{HEX}", HEX, HEX, None, None, 1 << 20, 64, 1)
    state = State(store.sandboxes / "source", spec, False, 0, 1.0, 1.0, 2.0, 0, "")
    with pytest.raises(BadInput, match="does not run"):
        snapshot_taking.take(store, state, "new")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-m", "1g"], "--memory and --from"),
        (["-e", "A=b"], "--env and --from"),
        (["--network", "none"], "--network and --from"),
        (["-p", "8080:80"], "has no network"),
        (["-i"], "has no standard input"),
        (["--", "sh"], "a command and --from"),
        (["--disk-size", "9g", "--cold"], "--disk-size and --from"),
        (["--policy", "/policy.json"], "--policy and --from"),
        (["--policy", "/policy.json", "--cold"], "--policy and --from"),
    ],
)
def test_options_of_those_that_boot(
    store: Store, words: list[str], why: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = saved_with(store).folder
    value = json.loads((folder / "snapshot.json").read_text())
    value["state"]["spec"]["network"] = "none"
    (folder / "snapshot.json").write_text(json.dumps(value))
    monkeypatch.setenv("ROOTDISK_STORE", str(store.root))
    assert main(["boot", "--from", "saved", *words]) == 125
    said = capfd.readouterr().err
    assert why in said
    assert len(said.splitlines()) == 1


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda folder: _flip(folder / "disk.raw", 8193), "disk: its content"),
        (lambda folder: _flip(folder / "disk.raw", 90_000), "disk: its content"),
        (lambda folder: os.truncate(folder / "disk.raw", 1 << 19), "disk: its content"),
        (lambda folder: (folder / "disk.raw").unlink(), "has no disk"),
        (lambda folder: _flip(folder / "records", 0), "records: its content"),
        (lambda folder: (folder / "slot.json").unlink(), "cannot be read"),
    ],
)
def test_a_damaged_one(store: Store, change: Callable[[Path], None], why: str) -> None:
    """It is found before a sandbox has a copy of it; a copy without holes is no damage."""
    files = {name: hashlib.sha256(b"a=b").hexdigest() for name in ("slot.json", "records")}
    folder = put(store, "saved", files=files)
    for name in files:
        (folder / name).write_bytes(b"a=b")
    (folder / "disk.raw").write_bytes((folder / "disk.raw").read_bytes())
    assert snapshots.damage_of_disk(snapshots.find(store, "saved")) == ""
    change(folder)
    assert why in snapshots.damage_of_disk(snapshots.find(store, "saved"), 64 << 20)
    assert why in snapshots.damage(snapshots.find(store, "saved"))


def test_a_large_disk_is_not_read(store: Store) -> None:
    folder = put(store, "saved")
    _flip(folder / "disk.raw", 8193)
    assert snapshots.damage_of_disk(snapshots.find(store, "saved"), 0) == ""


def test_what_is_said_of_it_has_a_digest(store: Store) -> None:
    folder = put(store, "saved")
    value = json.loads((folder / "snapshot.json").read_text())
    text = json.dumps({**value, "digest": snapshots.digest_of(value)})
    (folder / "snapshot.json").write_text(text)
    assert snapshots.find(store, "saved").created == 5.0
    (folder / "snapshot.json").write_text(text.replace("5.0", "6.0"))
    with pytest.raises(BadInput, match=r"snapshot\.json: its content does not match its digest"):
        snapshots.find(store, "saved")


def test_no_artifact_and_no_snapshot(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROOTDISK_STORE", str(store.root))
    assert main(["boot"]) == 125
    assert "missing: ARTIFACT" in capfd.readouterr().err
    assert main(["boot", "--from", "none"]) == 125
    assert "no snapshot 'none'" in capfd.readouterr().err
    assert main(["boot", "--from", "", "--name", "x"]) == 125
    assert "no snapshot ''" in capfd.readouterr().err


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


@pytest.mark.parametrize("make", ["file", "fifo", "link", "dangling link"])
def test_what_is_no_directory_is_removed(
    store: Store, make: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What else has the name of a snapshot keeps `prune` from removing anything, so `rm` removes it; what a link leads to stays."""
    monkeypatch.setenv("ROOTDISK_STORE", str(store.root))
    place, other = store.root / "snapshots" / "odd", store.root.parent / "other"
    other.mkdir()
    (other / "file").write_text("x")
    if make == "file":
        place.write_text("x")
    elif make == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to(other if make == "link" else "/nonexistent")
    assert isinstance(snapshots.find_any(store, "odd"), Unreadable)
    assert main(["rm", "--snapshot", "odd"]) == 0, capsys.readouterr().err
    assert list((store.root / "snapshots").iterdir()) == []
    assert (other / "file").read_text() == "x"


def test_what_is_said_of_a_damaged_one(store: Store) -> None:
    folder = put(store, "s")
    (folder / "snapshot.json").write_text("{")
    found = snapshots.look(folder)
    assert isinstance(found, Unreadable)
    assert found.reason.startswith("snapshot.json is cut off or damaged: ")


@pytest.mark.parametrize("again", [False, True], ids=["gone", "another"])
def test_one_that_is_removed_while_a_sandbox_is_made_from_it(store: Store, again: bool) -> None:
    """It is not called damaged, nor is what it needed called missing; also if another one has its name by then."""
    put(store, "saved")
    snapshot = snapshots.find(store, "saved")
    snapshots.remove(store, "saved")
    assert snapshot.to_json()["size"] == 0
    if again:
        put(store, "saved", created=6.0)
    for make in (lambda: forks.go_on(store, snapshot, snapshot.state.spec, b"a"), lambda: _use(snapshot)):
        with pytest.raises(RootdiskError, match=r"^snapshot saved was removed meanwhile$"):
            make()


def _use(snapshot: Snapshot) -> None:
    with snapshots.unless_removed(snapshot):
        raise FileNotFoundError(snapshot.folder / "ram")


def test_an_error_of_one_that_is_there_is_its_own(store: Store) -> None:
    put(store, "saved")
    with pytest.raises(FileNotFoundError):
        _use(snapshots.find(store, "saved"))
    snapshot = snapshots.find(store, "saved")
    (snapshot.folder / "snapshot.json").write_text("{")
    with pytest.raises(FileNotFoundError):
        _use(snapshot)
