"""Files of older and newer releases: an error that says what to do, or left alone. docs/compatibility.md lists them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rootdisk.artifact.format import SlotExtent
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.system.versions import OtherVersion, check_version, read_versioned, write_versioned
from runner.disk import slot
from runner.disk.clone import clone
from runner.machine import accelerator, qemu
from runner.sandbox.directory import Sandbox, sweep
from runner.sandbox.lookup import find, needed
from runner.sandbox.upkeep.prune import prune
from runner.store import names, trust
from runner.store.pull import StoredArtifact, pull
from runner.store.store import FORMAT, Store
from runner.store.verify import verify
from tests.support.commands import Runner
from tests.support.sandboxes import spec_of

OTHERS = pytest.mark.parametrize("version", [0, 2], ids=["older", "newer"])


@pytest.fixture
def artifact(store: Store, layout: str) -> StoredArtifact:
    pulled = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    pulled.release()
    return pulled


@pytest.fixture
def kept(store: Store, artifact: StoredArtifact) -> Path:
    """The directory of a kept sandbox that has ended."""
    sandbox = Sandbox.create(store, spec_of("kept", artifact, keep=True))
    sandbox.take_name()
    sandbox.write_state(started=1, status=0)
    sandbox.release()
    return sandbox.folder


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all small files, without locks."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.parent.name != "locks" and path.stat().st_size < 1 << 20:
            yield str(path.relative_to(folder)), path.read_bytes()


def with_version(path: Path, version: int | None) -> bytes:
    value = json.loads(path.read_bytes())
    value.pop("version", None)
    path.write_text(json.dumps(value if version is None else {**value, "version": version}))
    return path.read_bytes()


@pytest.mark.parametrize("version", [True, -1, 1 << 40, 1.0, "1", None, [1]])
def test_a_version_that_is_not_one(version: Any) -> None:
    with pytest.raises(ValueError, match="version is not a number") as caught:
        check_version({"version": version}, 1)
    assert not isinstance(caught.value, OtherVersion)


@OTHERS
def test_a_file_with_another_version_is_left_alone(tmp_path: Path, version: int) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"version": version, "other": 1}))
    before = path.read_bytes()
    with pytest.raises(OtherVersion, match=f"has version {version}; this rootdisk reads version 1"):
        read_versioned(path, 1)
    assert not write_versioned(path, {"key": 1}, 1)
    assert path.read_bytes() == before


def test_a_file_without_a_version_has_the_first(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for content in ('{"key": 0}', "damaged", "[1]"):
        path.write_text(content)
        assert write_versioned(path, {"key": 1}, 1)
        assert read_versioned(path, 1) == {"key": 1, "version": 1}
    path.write_text('{"key": 0}')
    assert not write_versioned(path, {"key": 1}, 2)
    assert path.read_text() == '{"key": 0}'


@pytest.mark.parametrize(
    ("text", "advice"),
    [("0", "set ROOTDISK_STORE"), ("2", "update rootdisk, or set ROOTDISK_STORE"), ("two", "set ROOTDISK_STORE")],
)
@pytest.mark.parametrize("command", [["ps", "-a"], ["prune"], ["verify"], ["rm", "--force", "a"], ["pull", "x/y:z"]])
def test_a_store_of_another_format(tmp_path: Path, text: str, advice: str, command: list[str]) -> None:
    root = tmp_path / "other"
    root.mkdir(mode=0o700)
    (root / "format").write_text(text)
    done = Runner(root)(*command)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert f"has format {text}; this rootdisk uses format {FORMAT}: {advice}" in done.stderr
    assert [path.name for path in root.iterdir()] == ["format"]


def test_a_store_without_a_format(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir(mode=0o700)
    assert Runner(root)("ps").returncode == 0
    assert (root / "format").read_text() == FORMAT


@OTHERS
def test_a_state_of_another_version(store: Store, artifact: StoredArtifact, kept: Path, version: int) -> None:
    """No command changes anything of the sandbox or of what it may need, but `rm --force`."""
    with_version(kept / "state.json", version)
    before = dict(files(store.root))
    assert needed(store) is None
    for command in (["start", "kept"], ["stop", "kept"], ["rm", "kept"], ["exec", "kept", "true"], ["logs", "kept"]):
        done = Runner(store.root)(*command)
        assert done.returncode == 125, command
        assert f"state.json has version {version}; this rootdisk reads version 1" in done.stderr
        assert "to delete it: runner rm --force kept" in done.stderr
    assert "unreadable" in Runner(store.root)("ps", "-a").stdout
    sweep(store)
    assert prune(store, 0, None, dry_run=False) == []
    assert dict(files(store.root)) == before
    assert Runner(store.root)("rm", "--force", "kept").returncode == 0
    assert not kept.exists()


def test_a_state_without_a_version(store: Store, kept: Path) -> None:
    with_version(kept / "state.json", None)
    sandbox = Sandbox.open(find(store, "kept"))
    sandbox.write_state(started=2, status=3)
    sandbox.release()
    assert json.loads((kept / "state.json").read_bytes())["version"] == 1


@OTHERS
def test_a_slot_record_of_another_version(tmp_path: Path, artifact: StoredArtifact, version: int) -> None:
    disk = clone(artifact.disk, artifact.config.disk_size, tmp_path, "copy", {})
    extent, path = SlotExtent("slot", 0, 64 << 10), tmp_path / "slot.json"
    first, second = (slot.pack([("arg", text)], extent.length) for text in (b"1", b"2"))
    slot.write(disk.path, extent, first, path, overlay=False)
    slot.rewrite(disk.path, extent, second, path, overlay=False)
    path.write_text(json.dumps({"version": version, "clusters": json.loads(path.read_bytes())}))
    before = path.read_bytes(), disk.path.read_bytes()
    with pytest.raises(RootdiskError, match="written by another version of rootdisk: start it with that version"):
        slot.rewrite(disk.path, extent, first, path, overlay=False)
    assert (path.read_bytes(), disk.path.read_bytes()) == before


@OTHERS
def test_a_name_of_another_version(store: Store, layout: str, artifact: StoredArtifact, version: int) -> None:
    (path,) = (store.root / "names").iterdir()
    before = with_version(path, version)
    assert names.read_name(path) is None
    pull(store, parse_reference(layout), RegistryOptions(), Platform.host()).release()
    os.utime(path, (0, 0))
    prune(store, 0, None, dry_run=False)
    assert not artifact.disk.exists()
    assert path.read_bytes() == before


def test_a_name_without_a_version(store: Store, artifact: StoredArtifact) -> None:
    (path,) = (store.root / "names").iterdir()
    assert json.loads(path.read_bytes())["version"] == 1
    with_version(path, None)
    name = names.read_name(path)
    assert name is not None
    assert name.manifest == artifact.digest.hex


@OTHERS
def test_what_was_found_out_about_this_host(tmp_path: Path, version: int) -> None:
    """Another version's verdict counts as none, and is not replaced."""
    verdicts, kinds = tmp_path / "kvm.json", tmp_path / "qemu.json"
    accelerator.remember(verdicts, None, False)
    assert accelerator._verdict(verdicts, None) is False
    with_version(verdicts, None)
    assert accelerator._verdict(verdicts, None) is False
    before = with_version(verdicts, version)
    assert accelerator._verdict(verdicts, None) is None
    accelerator.remember(verdicts, None, True)
    assert verdicts.read_bytes() == before
    try:
        kind = qemu.kind(Platform.parse("linux/amd64"), kinds)
    except RootdiskError:
        pytest.skip("QEMU is not installed")
    before = with_version(kinds, version)
    assert qemu.kind(Platform.parse("linux/amd64"), kinds) == kind
    assert kinds.read_bytes() == before


@OTHERS
def test_accepted_signatures_of_another_version(store: Store, version: int) -> None:
    """They count as none, so the registry is asked; `prune` leaves them alone."""
    manifest = Digest("sha256", "a" * 64)
    path = store.root / "trust" / f"{manifest.hex}.json"
    path.parent.mkdir(exist_ok=True)
    value = {"version": trust.VERSION, "trusted": [str(manifest)], "signatures": [], "verdicts": {}}
    path.write_text(json.dumps(value))
    assert trust._Record.read(store, manifest).trusted == (manifest,)
    before = with_version(path, version)
    assert trust._Record.read(store, manifest).trusted == ()
    prune(store, 0, None, dry_run=False)
    assert path.read_bytes() == before
    with_version(path, 1)
    prune(store, 0, None, dry_run=False)
    assert not path.exists()


def test_a_chunk_index_of_a_newer_version(store: Store, layout: str, artifact: StoredArtifact) -> None:
    """Its disk is not marked as damaged, and is reported."""
    index = artifact.disk.with_suffix(".chunks")
    raw = index.read_bytes()
    index.chmod(0o600)
    index.write_bytes(b"RDCHUNK2" + raw[8:])
    report = verify(store)
    assert (report.damages, report.other_versions) == ([], [artifact.disk])
    assert not list((store.root / "damaged").iterdir())
    done = Runner(store.root)("verify")
    assert done.returncode == 0
    assert "not checked: fetched by another version of rootdisk" in done.stderr
    index.write_bytes(b"\0" + raw[1:])
    assert [damage.path for damage in verify(store).damages] == [artifact.disk]
