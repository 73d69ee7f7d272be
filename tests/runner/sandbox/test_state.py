"""A sandbox whose state cannot be read is seen, keeps what it needs, and can be removed."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootdisk.errors import BadInput
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.cli import main
from runner.machine import accelerator, qemu
from runner.sandbox.directory import Sandbox, sweep
from runner.sandbox.lookup import find, read, states
from runner.sandbox.state import _SPEC, MAX_BYTES, VERSION, Spec, State, parse, state_json
from runner.sandbox.upkeep.prune import prune
from runner.store.names import read_name
from runner.store.pull import StoredArtifact, pull
from runner.store.store import Store
from tests.support.sandboxes import spec_of

HEX = "a" * 64


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def runner(capsys: pytest.CaptureFixture[str], store: Store) -> Run:
    """The runner's command line, in this process."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        status = main(arguments)
        return Done(status, *capsys.readouterr())

    return run


def kept(store: Store, local: StoredArtifact, name: str = "kept") -> Path:
    """The directory of a kept sandbox that has ended."""
    made = Sandbox.create(store, spec_of(name, local, keep=True))
    made.take_name()
    made.write_state(started=time.time(), status=0)
    made.release()
    return made.folder


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        value = json.loads((folder / "state.json").read_bytes())
        change(value)
        (folder / "state.json").write_text(json.dumps(value))

    return damage


def written(data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "state.json").write_bytes(data) and None  # type: ignore[return-value]


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def cut(folder: Path) -> None:
    os.truncate(folder / "state.json", (folder / "state.json").stat().st_size - 20)


def huge(folder: Path) -> None:
    os.truncate(folder / "state.json", 1 << 40)


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("in the way")


def a_link(folder: Path) -> None:
    folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to("../elsewhere")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": cut,
    "empty": written(b"\n"),
    "no bytes": written(b""),
    "not JSON": written(b"\0\xff" * 500),
    "not UTF-8": written(b'{"spec": "\xff"}'),
    "a list": written(b"[]"),
    "nested": written(b"[" * 200_000),
    "NaN": changed(lambda value: value.update(started=float("nan"))),
    "a large number": written(b'{"version": 1' + b"0" * 5000 + b"}"),
    "a number that no float can be": changed(lambda value: value["spec"].update(timeout_s=10**400)),
    "half of a surrogate pair": changed(lambda value: value["spec"].update(reference="\ud800")),
    "gone": lambda folder: (folder / "state.json").unlink(),
    "a directory": replaced("state.json", Path.mkdir),
    "a link": replaced("state.json", lambda path: path.symlink_to("/etc/passwd")),
    "a broken link": replaced("state.json", lambda path: path.symlink_to("nowhere")),
    "a FIFO": replaced("state.json", os.mkfifo),
    "huge": huge,
    "no spec": changed(lambda value: value.pop("spec")),
    "a spec that is none": changed(lambda value: value.update(spec=[1])),
    "no disk": changed(lambda value: value["spec"].pop("disk")),
    "a path for a digest": changed(lambda value: value["spec"].update(disk="../../etc/passwd")),
    "a number for a text": changed(lambda value: value["spec"].update(reference=7)),
    "a text for a number": changed(lambda value: value["spec"].update(cpus="7")),
    "a negative pid": changed(lambda value: value.update(pid=-1)),
    "odd volumes": changed(lambda value: value["spec"].update(volumes=[["/a", "/b"]])),
    "a key twice": lambda folder: (folder / "state.json").write_bytes(
        (folder / "state.json").read_bytes().rstrip(b"}\n") + b', "version": 1}\n'
    ),
    "a newer version": changed(lambda value: value.update(version=VERSION + 1)),
    "an older version": changed(lambda value: value.update(version=VERSION - 1)),
    "a lock that is a directory": replaced("lock", Path.mkdir),
    "a lock that is a link": replaced("lock", lambda path: path.symlink_to("state.json")),
    "a lock that is a FIFO": replaced("lock", os.mkfifo),
    "a file in its place": a_file,
    "a link in its place": a_link,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_is_seen_and_keeps_its_disk(runner: Run, store: Store, layout: str, damage: str) -> None:
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    local.release()
    folder = kept(store, local)
    DAMAGES[damage](folder)
    (row,) = json.loads(runner("ps", "-a", "--json").stdout)
    assert (row["name"], row["state"], row["running"]) == ("kept", "unreadable", False)
    assert row["reason"]
    listed = runner("ps", "-a").stdout.splitlines()
    assert len(listed) == 2
    assert "unreadable" in listed[1]
    assert runner("ps").stdout.count("\n") == 1
    for command in ("start", "logs", "stop", "kill", "wait"):
        done = runner(command, "kept")
        assert (done.returncode, done.stderr.count("\n")) == (125, 1), done.stderr
        assert "cannot be read" in done.stderr

    other = Sandbox.create(store, spec_of("kept", local))
    with pytest.raises(BadInput, match="there is already a sandbox kept, which cannot be read"):
        other.take_name()
    other.remove()
    other.release()

    before = sorted(store.root.glob("[bdn]*/*"))
    sweep(store)
    done = runner("prune")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "sandbox kept cannot be read, so what it may need stays" in done.stderr
    assert sorted(store.root.glob("[bdn]*/*")) == before
    assert os.path.lexists(folder)

    if damage.endswith("version"):
        done = runner("rm", "kept")
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
        assert "this rootdisk reads version 1" in done.stderr
        assert "to delete it: runner rm --force kept" in done.stderr
        assert os.path.lexists(folder)
    done = runner("rm", *(["--force"] if damage.endswith("version") else []), "kept")
    assert (done.returncode, done.stdout, done.stderr) == (0, "kept\n", "")
    assert not os.path.lexists(folder)
    if damage == "a link in its place":
        assert (store.root / "elsewhere/state.json").exists()
    assert runner("prune").stderr == ""
    assert not local.disk.exists()


def test_an_unknown_field_is_kept_and_its_digests_stay(runner: Run, store: Store, layout: str) -> None:
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    local.release()
    folder = kept(store, local)
    others = {digit: store.root / "blobs" / (digit * 64) for digit in "abcde"}
    for other in others.values():
        other.write_bytes(b"firmware")

    def change(value: dict[str, Any]) -> None:
        value.update(later={"anything": [1, None], "b" * 64: {}}, from_=[f"some.where/a/b:1@sha256:{'c' * 64}"])
        value["spec"].update(path=f"é{'d' * 64}", upper=("e" * 64).upper())
        value["spec"].update(firmware=f"sha256:{HEX}", colour="red")

    changed(change)(folder)
    state = read(folder)
    assert (state.text, state.spec.keep) == ("exited (0)", True)
    runner("prune")
    assert local.disk.exists()
    assert all(other.exists() for other in others.values())
    opened = Sandbox.open(state)
    opened.write_state(started=5, status=3)
    opened.release()
    value = json.loads((folder / "state.json").read_bytes())
    assert (value["later"]["anything"], value["version"]) == ([1, None], VERSION)
    assert (value["spec"]["colour"], value["spec"]["firmware"]) == ("red", f"sha256:{HEX}")
    assert read(folder).status == 3
    assert runner("rm", "kept").returncode == 0
    runner("prune")
    assert not any(other.exists() for other in others.values())


def test_fields_that_an_older_version_did_not_write(store: Store, layout: str) -> None:
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    folder = kept(store, local)
    local.release()

    def change(value: dict[str, Any]) -> None:
        value.pop("version")
        for name in ("timeout_s", "clone", "labels"):
            value["spec"].pop(name)

    changed(change)(folder)
    assert read(folder).spec == spec_of("kept", local, keep=True)


def test_a_sandbox_without_its_lock(runner: Run, store: Store, layout: str) -> None:
    """Its lock is made again, if nobody keeps it."""
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    local.release()
    folder = kept(store, local)
    (folder / "lock").unlink()
    (row,) = json.loads(runner("ps", "-a", "--json").stdout)
    assert (row["name"], row["state"]) == ("kept", "exited")
    sweep(store)
    runner("prune")
    assert local.disk.exists()
    Sandbox.open(find(store, "kept")).release()
    assert (folder / "lock").exists()
    (folder / "lock").unlink()
    assert runner("rm", "kept").stdout == "kept\n"
    assert not folder.exists()


def test_what_had_no_name_goes_unless_it_is_newer(runner: Run, store: Store, layout: str) -> None:
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    local.release()
    for name, damage in (("a", "cut off"), ("b", "a newer version"), ("c", "gone")):
        folder = kept(store, local, name)
        DAMAGES[damage](folder)
        folder.rename(folder.with_name(f".new-{name}"))
        os.utime(folder.with_name(f".new-{name}"), (0, 0))
    sweep(store)
    assert [path.name for path in store.sandboxes.iterdir()] == [".new-b"]
    (row,) = json.loads(runner("ps", "-a", "--json").stdout)
    assert row["name"] == ".new-b"
    assert runner("rm", ".new-b").returncode == 125
    assert runner("rm", "--force", ".new-b").returncode == 0
    assert not list(store.sandboxes.iterdir())


def test_files_of_another_version_stay(store: Store, layout: str) -> None:
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    local.release()
    others = [
        store.root / "disks" / f"{HEX}.erofs",
        store.root / "disks" / "notes.txt",
        store.root / "blobs" / f"sha3-{HEX}",
        store.root / "names" / "v2",
        store.root / "names" / HEX,
    ]
    for path in others:
        path.write_text('{"version": 2}')
        os.utime(path, (0, 0))
    writing = store.root / "blobs" / f".{HEX}.{'0' * 16}"
    writing.write_bytes(b"half")
    prune(store, 0, None, dry_run=False)
    assert all(path.exists() for path in others)
    assert writing.exists()
    os.utime(writing, (0, 0))
    prune(store, 0, None, dry_run=False)
    assert not writing.exists()
    assert not local.disk.exists()


def test_a_sandbox_made_during_a_prune(store: Store, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it needs is looked up again for each digest, when nobody else can lease it any more."""
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    local.release()
    from runner.sandbox import lookup

    real, calls = lookup.needed, []

    def needed(store: Store) -> set[str] | None:
        calls.append(1)
        found = real(store)
        if len(calls) == 1:
            kept(store, local)
        return found

    monkeypatch.setattr(lookup, "needed", needed)
    assert prune(store, 0, None, dry_run=False) == []
    assert local.disk.exists()


def test_a_state_that_could_not_be_read_again_is_not_written(store: Store) -> None:
    spec = Spec("big", "r", f"sha256:{HEX}", HEX, HEX, None, None, 1, 64, 1)
    for bad in (spec._replace(labels=(("a", "x" * MAX_BYTES),)), spec._replace(timeout_s=float("nan"))):
        with pytest.raises(BadInput, match="sandbox big: its state cannot be written"):
            Sandbox.create(store, bad)
    assert not list(store.sandboxes.iterdir())


@pytest.mark.parametrize("name", ["", ".", "..", "../sandboxes/kept", "a\0b", "x" * 300, ".hidden", "kepd"])
def test_a_name_that_is_none(store: Store, layout: str, name: str) -> None:
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    local.release()
    kept(store, local)
    with pytest.raises(BadInput, match="no sandbox") as caught:
        find(store, name)
    assert name != "kepd" or "did you mean kept?" in str(caught.value)


def test_every_field_is_checked() -> None:
    assert list(_SPEC) == list(Spec._fields)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=20)
    | st.text(st.characters(categories=["Cs"]), min_size=1, max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
GOOD = state_json(
    {},
    Spec("a", "r", f"sha256:{HEX}", HEX, HEX, HEX, None, 1 << 30, 64, 1, forwards=(("tcp", "::1", 80, 80),), keep=True),
    pid=0, created=1.5, started=2, ended=None, status=None, error="",
)  # fmt: skip


@given(st.binary(max_size=300) | st.builds(lambda value: json.dumps(value).encode(), JSON))
def test_any_bytes_are_a_state_or_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError):
        parse(raw, Path("a"), False)


@given(st.sampled_from(sorted(set(GOOD) | set(Spec._fields))), JSON)
def test_any_value_of_a_field(field: str, value: object) -> None:
    where = {**GOOD, "spec": dict(GOOD["spec"])}
    (where["spec"] if field in Spec._fields else where)[field] = value
    try:
        state = parse(json.dumps(where).encode(), Path("a"), False)
    except ValueError:
        return
    assert isinstance(state, State)
    assert "/" not in "".join(state.spec.uses)
    json.dumps(state.to_json(), allow_nan=False)
    os.fsencode(json.dumps(state.to_json(), ensure_ascii=False))
    assert state.text
    again = json.dumps(state_json(state.raw, state.spec)).encode()
    assert parse(again, Path("a"), False) == state


def test_states_are_only_the_readable_ones(store: Store, layout: str) -> None:
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    local.release()
    cut(kept(store, local, "broken"))
    kept(store, local, "whole")
    assert [state.name for state in states(store)] == ["whole"]


def odd_files(path: Path, other: Path) -> Iterator[str]:
    """Makes `path` each odd thing in turn, and says which."""
    contents = [
        b"",
        b"\0",
        b"[]",
        b"7",
        b"null",
        b"{",
        b"[" * 100_000,
        b'{"host": NaN}',
        b"\xff" * 99,
        b'{"a":' + b"9" * 5000,
    ]
    contents += [
        b'{"works": [], "host": {}}',
        b'{"kind": "evil", "qemu": 1}',
        b'[["a"], 3]',
        b"no records",
        b"key=cut off",
    ]
    for content in contents:
        path.write_bytes(content)
        yield repr(content[:30])
        path.unlink(missing_ok=True)
    other.write_text("precious")
    for kind, make in (
        ("directory", lambda: path.mkdir()),
        ("link", lambda: path.symlink_to(other)),
        ("fifo", lambda: os.mkfifo(path)),
        ("huge", lambda: (path.touch(), os.truncate(path, 1 << 40))),  # type: ignore[func-returns-value]
    ):
        make()
        yield kind
        path.rmdir() if kind == "directory" else path.unlink(missing_ok=True)
        assert other.read_text() == "precious"


def test_other_files_of_the_store(runner: Run, store: Store, layout: str, tmp_path: Path) -> None:
    """Damaged, they are asked for or made again, or one line says what is wrong."""
    local = pull(store, parse_reference(layout), RegistryOptions(), Platform.host())
    local.release()
    for _ in odd_files(store.root / "kvm.json", tmp_path / "other"):
        assert accelerator._verdict(store.root / "kvm.json", None) is None
        accelerator.remember(store.root / "kvm.json", None, True)
    if shutil.which("qemu-system-x86_64"):
        for _ in odd_files(store.root / "qemu.json", tmp_path / "other"):
            assert qemu.kind(Platform.parse("linux/amd64"), store.root / "qemu.json") in qemu.KINDS
    (name,) = (store.root / "names").iterdir()
    sound = name.read_bytes()
    for what in odd_files(name, tmp_path / "other"):
        assert read_name(name) is None
        runner("prune", "--older-than", "1")
        assert os.path.lexists(name), what
        for command in (["pull", layout], ["verify", "--repair"]):
            done = runner(*command)
            assert done.returncode in (0, 125), what
            assert (done.returncode == 0) or done.stderr.count("\n") == 1
    name.write_bytes(sound)
    kept(store, local)
    for file in ("slot.json", "records"):
        (store.sandboxes / "kept" / "records").write_bytes(b"hostname=a\0")
        for what in odd_files(store.sandboxes / "kept" / file, tmp_path / "other"):
            done = runner("start", "kept")
            assert (done.returncode, done.stderr.count("\n")) == (125, 1), (what, done.stderr)
    for what in odd_files(store.root / "damaged" / local.disk.stem, tmp_path / "other"):
        done = runner("start", "kept")
        assert "is damaged in the store" in done.stderr, what
    (store.root / "format").unlink()
    for what in odd_files(store.root / "format", tmp_path / "other"):
        done = runner("ps")
        assert (done.returncode, done.stderr.count("\n")) == (125, 1), what
        assert f"store {store.root}" in done.stderr
