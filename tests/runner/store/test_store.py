"""The store: what is in use stays, what is damaged is found and mended, and every file system will do."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rootdisk.durable import atomic_write
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.disk.clone import clone
from runner.sandbox.directory import Sandbox, sweep
from runner.sandbox.lookup import read, states
from runner.sandbox.upkeep.prune import prune
from runner.store.pull import pull
from runner.store.store import Damaged, Store
from tests.support.artifacts import noise, publish, sample, small
from tests.support.faults import FaultProxy
from tests.support.mounts import KINDS, mounted, needs_root
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.sandboxes import spec_of

CHUNK = 128 << 10
MADE = small()


@pytest.fixture(scope="module")
def registry(registry: RunningRegistry) -> RunningRegistry:
    publish(MADE, f"{registry.name}/store/a:v1", registry.options)
    return registry


def runner(store: Path, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runner", *arguments],
        env={**os.environ, "ROOTDISK_STORE": str(store)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_what_is_leased_stays(store: Store, layout: str) -> None:
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    assert prune(store, 0, None, dry_run=False) == []
    local.release()
    gone = prune(store, 0, None, dry_run=True)
    assert local.disk.exists()
    assert prune(store, 0, None, dry_run=False) == gone
    assert not list((store.root / "disks").iterdir())
    assert not list((store.root / "blobs").iterdir())
    assert not list((store.root / "names").iterdir())


def test_a_clock_that_was_set_back(store: Store, layout: str) -> None:
    """What was used in the future is not unused for a negative time: it was never removed."""
    pull(store, parse_reference(layout), RegistryOptions(), Platform.host()).release()
    for folder in ("disks", "blobs"):
        for path in (store.root / folder).iterdir():
            os.utime(path, (0, time.time() + 1e6))
    assert prune(store, 1, None, dry_run=False) == []
    assert prune(store, 0, None, dry_run=False)
    assert not list((store.root / "disks").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may take /proc away")
def test_without_proc(tmp_path: Path) -> None:
    """As in a bare chroot: one line that says what to mount."""
    words = [sys.executable, "-m", "runner", "doctor"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh", *words],
        env={**os.environ, "ROOTDISK_STORE": str(tmp_path / "store")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (125, "runner: there is no /proc here: mount -t proc proc /proc\n")


def test_what_a_kept_sandbox_needs_stays(store: Store, layout: str) -> None:
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    kept = Sandbox.create(store, spec_of("kept", local, keep=True))
    kept.take_name()
    kept.release()
    local.release()
    prune(store, 0, None, dry_run=False)
    assert local.disk.exists()
    assert local.disk.with_suffix(".chunks").exists()
    Sandbox.open(read(store.sandboxes / "kept")).remove()
    prune(store, 0, None, dry_run=False)
    assert not local.disk.exists()


def test_the_longest_unused_goes_first(store: Store, tmp_path: Path) -> None:
    disks = []
    for number in range(3):
        reference = f"oci:{tmp_path / 'many'}:{number}"
        publish(sample(noise(8, CHUNK, seed=number)), reference, RegistryOptions())
        local = pull(store, parse_reference(reference), RegistryOptions(), Platform.host())
        local.release()
        disks.append(local.disk)
    for disk, age in zip(disks, (100, 300, 200), strict=True):
        os.utime(disk, (time.time() - age,) * 2)
        os.utime(disk.with_suffix(".chunks"), (time.time() - age,) * 2)
    done = runner(store.root, "prune", "--max-size", "2300k", "--json")
    assert done.returncode == 0, done.stderr
    assert [disk.exists() for disk in disks] == [True, False, True]
    assert runner(store.root, "prune", "--older-than", "1").returncode == 0
    assert disks[0].exists()


def test_killed_ones_are_swept_and_living_ones_not(store: Store, layout: str) -> None:
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    living = Sandbox.create(store, spec_of("living", local))
    living.take_name()
    for keep in (False, True):
        pid = os.fork()
        if not pid:
            made = Sandbox.create(store, spec_of(f"dead-{keep}", local, keep=keep))
            made.take_name()
            Sandbox.create(store, spec_of("unnamed", local, keep=keep))
            os._exit(0)
        os.waitpid(pid, 0)
    sweep(store)
    assert {state.spec.name: state.running for state in states(store)} == {"living": True, "dead-True": False}
    other = Sandbox.create(store, spec_of("living", local))
    with pytest.raises(BadInput, match="there is already a sandbox living"):
        other.take_name()
    other.remove()
    other.release()
    living.remove()
    living.release()
    local.release()


@needs_registry
def test_the_registry_is_not_asked_for_what_is_known(
    store: Store, registry: RunningRegistry, proxy: FaultProxy
) -> None:
    reference, host = parse_reference(f"{proxy.name}/store/a:v1"), Platform.host()
    options = RegistryOptions(plain_http=True)
    first = pull(store, reference, options, host, ask=False)
    first.release()
    asked = len(proxy.seen)
    again = pull(store, reference, options, host, ask=False)
    again.release()
    assert (again.digest, again.disk) == (first.digest, first.disk)
    assert len(proxy.seen) == asked
    by_digest = reference._replace(tag="", digest=first.digest)
    for _ in range(2):
        pull(store, by_digest, options, host).release()
    assert len(proxy.seen) <= asked + 2
    pull(store, reference, options, host).release()
    assert len(proxy.seen) > asked + 1
    done = runner(store.root, "inspect", "--json", str(reference))  # by HTTPS, which is not spoken here
    assert json.loads(done.stdout)[0]["digest"] == str(first.digest)
    assert "this is what the store has" in done.stderr


@needs_registry
@pytest.mark.parametrize("damage", ["chunk", "hole", "length", "index", "blob", "manifest"])
def test_damage_is_found_and_mended(store: Store, proxy: FaultProxy, damage: str) -> None:
    local = pull(store, parse_reference(f"{proxy.name}/store/a:v1"), RegistryOptions(plain_http=True), Platform.host())
    local.release()
    assert json.loads(runner(store.root, "verify", "--json").stdout) == [{"checked": 3, "damaged": []}]
    disk = local.disk
    target, offset = {
        "chunk": (disk, 7 * CHUNK + 5),
        "hole": (disk, 20 * CHUNK + (1 << 19)),
        "length": (disk, MADE.index.disk_size),
        "index": (disk.with_suffix(".chunks"), 100),
        "blob": (store.blob_path(local.config_digest), 10),
        "manifest": (store.blob_path(local.digest), 10),
    }[damage]
    target.chmod(0o600)
    with target.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1) or b"\0"
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    done = runner(store.root, "verify")
    assert done.returncode == 1
    assert "1 damaged" in done.stdout
    assert (disk if damage == "index" else target).name in done.stderr
    served = proxy.bytes_of(MADE.path)
    done = runner(store.root, "verify", "--repair")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "1 repaired" in done.stdout
    assert runner(store.root, "verify").stdout == "3 files, 0 damaged\n"
    assert disk.read_bytes() == MADE.disk
    if damage == "chunk":
        assert proxy.bytes_of(MADE.path) - served < 2 * CHUNK


def flip(path: Path) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@needs_registry
@pytest.mark.parametrize("change", [flip, lambda path: os.truncate(path, 20), lambda path: os.truncate(path, 0)])
def test_a_damaged_config_is_noticed_when_it_is_read(
    store: Store, proxy: FaultProxy, change: Callable[[Path], object]
) -> None:
    """Nobody has run `verify`: nothing boots with it, and `pull` fetches it again."""
    reference, options = parse_reference(f"{proxy.name}/store/a:v1"), RegistryOptions(plain_http=True)
    local = pull(store, reference, options, Platform.host())
    local.release()
    config, manifest = store.blob_path(local.config_digest), store.blob_path(local.digest)
    right = config.read_bytes(), manifest.read_bytes()
    change(config)
    with pytest.raises(Damaged, match=f"{config.name[:12]} is damaged in the store.*runner verify --repair"):
        pull(store, reference, options, Platform.host(), ask=False)
    change(manifest)
    pull(store, reference, options, Platform.host(), repair=True).release()
    assert (config.read_bytes(), manifest.read_bytes()) == right


@needs_registry
def test_all_of_an_artifact_is_damaged(store: Store, proxy: FaultProxy) -> None:
    """The manifest leads to the config, and that to the disk: in whatever order they are found, all are repaired."""
    local = pull(store, parse_reference(f"{proxy.name}/store/a:v1"), RegistryOptions(plain_http=True), Platform.host())
    local.release()
    for path in (local.disk, store.blob_path(local.config_digest), store.blob_path(local.digest)):
        flip(path)
    done = runner(store.root, "verify", "--repair")
    assert (done.returncode, done.stdout) == (0, "3 files, 3 damaged, 3 repaired\n"), done.stderr
    assert runner(store.root, "verify").stdout == "3 files, 0 damaged\n"
    assert local.disk.read_bytes() == MADE.disk


@needs_registry
def test_twenty_pulls_at_once_fetch_once(store: Store, proxy: FaultProxy) -> None:
    command = [sys.executable, "-m", "runner", "pull", "--json", "--plain-http", f"{proxy.name}/store/a:v1"]
    processes = [
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(20)
    ]
    fetched = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        fetched.append(json.loads(out)[0]["fetched"])
    assert sum(1 for count in fetched if count) == 1
    # Who waited meanwhile has the registry show that it has the disk: one chunk.
    assert proxy.bytes_of(MADE.path) <= MADE.blob.size + 19 * (CHUNK + 1024)
    assert runner(store.root, "verify").returncode == 0


@needs_root
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_system_will_do(tmp_path: Path, layout: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(kind, tmp_path) as place:
        monkeypatch.setenv("ROOTDISK_STORE", str(place / "store"))
        store = Store.open()
        local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
        holes = local.disk.stat().st_blocks * 512 < MADE.index.disk_size - (1 << 19)
        assert holes
        patches = {0: b"patched"}
        reflinks = kind in ("xfs", "btrfs")
        for method in ("overlay", "copy", "reflink"):
            folder = place / method
            folder.mkdir()
            if method == "reflink" and not reflinks:
                with pytest.raises(BadInput, match="file system of the store does not support it"):
                    clone(local.disk, MADE.index.disk_size, folder, method, patches)
                continue
            copy = clone(local.disk, MADE.index.disk_size, folder, method, patches)
            if not copy.overlay:
                data = copy.path.read_bytes()
                assert (data[:7], data[7:]) == (b"patched", MADE.disk[7:])
        local.release()
        assert runner(store.root, "verify").returncode == 0
        assert runner(store.root, "doctor").stdout.count(kind) >= 1


@needs_root
def test_a_full_disk_leaves_nothing(tmp_path: Path, layout: str) -> None:
    with mounted("tmpfs", tmp_path, 3 << 20) as place:
        done = runner(place / "store", "pull", layout)
        assert done.returncode == 125
        assert done.stderr.count("\n") == 1
        assert "No space left" in done.stderr
        assert "runner prune" in done.stderr
        assert not list((place / "store/disks").iterdir())


@needs_root
def test_a_read_only_store_is_one_clear_error(tmp_path: Path, layout: str) -> None:
    with mounted("tmpfs", tmp_path, 64 << 20) as place:
        assert runner(place / "store", "prune").returncode == 0
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        done = runner(place / "store", "pull", layout)
        assert done.returncode == 125
        assert done.stderr.count("\n") == 1
        assert "Read-only file system" in done.stderr


def test_a_store_of_another_version(store: Store) -> None:
    (store.root / "format").write_text("2")
    done = runner(store.root, "ps")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert "has format 2" in done.stderr


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as failed:
            atomic_write(tmp_path / "state.json", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.value.filename == str(tmp_path / "state.json")
    assert list(tmp_path.iterdir()) == []
