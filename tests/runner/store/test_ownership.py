"""Other users: a store is its user's alone, and nobody follows another's links."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rootdisk.errors import RootdiskError
from runner.cli import main
from runner.sandbox import directory, lookup
from runner.sandbox.state import Spec, Unreadable
from runner.sandbox.upkeep.prune import prune
from runner.store.store import Store
from tests.support.mounts import needs_root

HEX = "a" * 64
ALICE, EVE = 54321, 54322  # numbers that nobody has


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may enter, as /home is."""
    folder = Path(tempfile.mkdtemp(prefix="rootdisk-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_user(uid: int, do: Callable[[], object], *, umask: int = 0o022, **environment: object) -> str:
    """What `do` returns, or the error it raises, in a process of that user."""
    inside, outside = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.environ.pop("ROOTDISK_STORE", None)
            os.environ.pop("XDG_DATA_HOME", None)
            os.environ.update({name: str(value) for name, value in environment.items()})
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.umask(umask)
            try:
                said = str(do())
            except RootdiskError as err:
                said = f"refused: {err}"
            except BaseException:
                said = traceback.format_exc()
            os.write(outside, said.encode())
        finally:
            os._exit(0)
    os.close(outside)
    with open(inside, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said


def opened() -> str:
    return str(Store.open().root)


def home(place: Path, uid: int, mode: int = 0o755) -> Path:
    folder = place / f"home-{uid}"
    folder.mkdir()
    folder.chmod(mode)
    os.chown(folder, uid, uid)
    return folder


def entries(place: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.lstat().st_uid, path.lstat().st_mode) for path in place.rglob("*"))


@needs_root
@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077, 0o277, 0o777])
@pytest.mark.parametrize("uid", [0, ALICE])
def test_what_is_made_is_private_whatever_the_umask(place: Path, uid: int, umask: int) -> None:
    folder = home(place, uid)

    def used() -> str:
        store = Store.open()
        spec = Spec("one", "r", f"sha256:{HEX}", HEX, HEX, None, None, 1, 64, 1, keep=True)
        made = directory.Sandbox.create(store, spec)
        made.take_name()
        made.release()
        os.close(store.lease([HEX])[0])
        directory.remove(lookup.find(store, "one"))
        prune(store, 0, None, dry_run=False)
        return opened()

    said = as_user(uid, used, umask=umask, HOME=folder)
    assert said == str(folder / ".local/share/rootdisk")
    made = [folder / ".local", *filter(Path.is_dir, (folder / ".local").rglob("*"))]
    assert len(made) == 11
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}
    assert as_user(uid, opened, HOME=folder) == said


@needs_root
def test_a_store_of_another_user_is_refused_to_root(place: Path) -> None:
    """As with `sudo -E`: nothing in it is made, followed or changed."""
    folder = home(place, ALICE)
    said = as_user(0, opened, HOME=folder)
    assert said.startswith("refused: ")
    assert f"{folder} belongs to user {ALICE}: run it as user {ALICE}, without sudo" in said
    assert not list(folder.iterdir())
    root = Path(as_user(ALICE, opened, HOME=folder))
    precious = place / "precious"
    precious.write_text("precious")
    (root / "locks" / HEX).symlink_to(precious)
    (root / "locks" / f"{HEX}.make").symlink_to(place / "new")
    shutil.rmtree(root / "names")
    (root / "names").symlink_to(place)
    before = entries(place)
    for command in (["ps", "-a"], ["prune"], ["verify", "--repair"], ["pull", f"oci:{place}:1"], ["doctor"]):
        status = as_user(0, lambda command=command: main(command), HOME=folder)  # type: ignore[misc]
        assert status in ("125", "1")
    assert entries(place) == before
    assert precious.read_text() == "precious"


@needs_root
def test_a_store_of_root_is_refused_to_others(place: Path) -> None:
    root = place / "store"
    as_user(0, opened, ROOTDISK_STORE=root)
    root.chmod(0o755)
    assert f"it belongs to root, and you are user {ALICE}" in as_user(ALICE, opened, ROOTDISK_STORE=root)


@needs_root
@pytest.mark.parametrize("below", ["", "disks", "locks", "sandboxes"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_store_that_others_may_write_to_says_what_to_type(place: Path, below: str, mode: int) -> None:
    root = Path(as_user(ALICE, opened, HOME=home(place, ALICE)))
    (root / below).chmod(mode)
    said = as_user(ALICE, opened, ROOTDISK_STORE=root)
    assert said.startswith("refused: ")
    assert said.count("\n") == 0
    remedy = said.rpartition("may write to it: ")[2].partition(", or ")[0]
    if mode == 0o770:
        assert remedy == f"chmod g-w {root / below}"
    subprocess.run(remedy, shell=True, check=True)
    if mode == 0o777:  # the group's turn
        remedy = as_user(ALICE, opened, ROOTDISK_STORE=root).rpartition("may write to it: ")[2].partition(", or ")[0]
        subprocess.run(remedy, shell=True, check=True)
    elif mode == 0o1777:
        (root / below).chmod(0o755)
    assert as_user(ALICE, opened, ROOTDISK_STORE=root) == str(root)


@needs_root
def test_a_store_of_an_older_runner_goes_on(place: Path) -> None:
    """Its own directory was made by the umask, and some directories were not there yet."""
    root = Path(as_user(ALICE, opened, HOME=home(place, ALICE)))
    for path in (root, root.parent, root.parent.parent):
        path.chmod(0o755)
    (root / "damaged").rmdir()
    assert as_user(ALICE, opened, ROOTDISK_STORE=root) == str(root)


@needs_root
def test_the_way_to_the_store(place: Path) -> None:
    folder = home(place, ALICE)
    open_to_all = folder / "open"
    open_to_all.mkdir()
    os.chown(open_to_all, ALICE, ALICE)
    root = open_to_all / "store"
    assert as_user(ALICE, opened, ROOTDISK_STORE=root) == str(root)
    open_to_all.chmod(0o777)
    assert f"others may write to {open_to_all}: chmod o-w {open_to_all}" in as_user(ALICE, opened, ROOTDISK_STORE=root)
    open_to_all.chmod(0o1777)
    assert as_user(ALICE, opened, ROOTDISK_STORE=root) == str(root)
    os.chown(open_to_all, EVE, EVE)
    assert f"{open_to_all} belongs to user {EVE}" in as_user(ALICE, opened, ROOTDISK_STORE=root)
    assert f"{open_to_all} belongs to user {EVE}" in as_user(ALICE, opened, ROOTDISK_STORE=root / ".." / "store")


@needs_root
def test_links_on_the_way(place: Path) -> None:
    """One's own are followed, another's in a sticky directory are not, and where they lead is looked at too."""
    sticky = place / "tmp"
    sticky.mkdir()
    sticky.chmod(0o1777)
    real = Path(as_user(ALICE, opened, HOME=home(place, ALICE)))
    for owner, good in ((ALICE, True), (0, True), (EVE, False)):
        link = sticky / f"link-{owner}"
        link.symlink_to(real)
        os.lchown(link, owner, owner)
        said = as_user(ALICE, opened, ROOTDISK_STORE=link)
        assert said == str(link) if good else f"the link {link} belongs to user {EVE}" in said
    theirs = home(place, EVE)
    (sticky / "leads-away").symlink_to(theirs / "store")
    os.lchown(sticky / "leads-away", ALICE, ALICE)
    assert f"{theirs} belongs to user {EVE}" in as_user(ALICE, opened, ROOTDISK_STORE=sticky / "leads-away")
    (sticky / "round").symlink_to("round")
    assert "symbolic links" in as_user(0, opened, ROOTDISK_STORE=sticky / "round" / "store")
    # A directory of the store that lies elsewhere: one's own place only.
    (real / "disks").rmdir()
    (real / "disks").symlink_to(theirs)
    assert f"belongs to user {EVE}" in as_user(ALICE, opened, ROOTDISK_STORE=real)
    (real / "disks").unlink()
    (real.parent / "big").mkdir()
    os.chown(real.parent / "big", ALICE, ALICE)
    (real / "disks").symlink_to(real.parent / "big")
    assert as_user(ALICE, opened, ROOTDISK_STORE=real) == str(real)


@needs_root
def test_a_group_of_its_own_is_no_other_user(place: Path) -> None:
    """As systems that give each user a group make directories, with a umask of 002."""
    name, number = next(
        (fields[0], int(fields[2]))
        for fields in (line.split(":") for line in Path("/etc/passwd").read_text().splitlines())
        if fields[2] == fields[3] and int(fields[2]) > 0
    )
    root = place / "store"
    root.mkdir()
    os.chown(root, number, number)
    root.chmod(0o775)
    assert as_user(number, opened, ROOTDISK_STORE=root) == str(root), name
    os.chown(root, number, 4242)
    assert f"chmod g-w {root}" in as_user(number, opened, ROOTDISK_STORE=root)
    os.chown(root, number, number)
    if shutil.which("setfacl"):
        subprocess.run(["setfacl", "-m", f"u:{EVE}:rwx", str(root)], check=True)
        assert f"chmod g-w {root}" in as_user(number, opened, ROOTDISK_STORE=root)


@needs_root
def test_a_place_that_is_trusted(place: Path) -> None:
    """A volume of a container, which is open to everybody, and where nobody else is."""
    root = place / "volume"
    root.mkdir()
    root.chmod(0o777)
    assert "others may write to it" in as_user(0, opened, ROOTDISK_STORE=root)
    for uid in (0, ALICE):
        assert as_user(uid, opened, ROOTDISK_STORE=root / f"{uid}", ROOTDISK_STORE_TRUSTED=1) == str(root / f"{uid}")


@needs_root
def test_a_sandbox_that_root_made_in_a_users_store(place: Path) -> None:
    store = Store(Path(as_user(ALICE, opened, HOME=home(place, ALICE))))
    spec = Spec("roots", "r", f"sha256:{HEX}", HEX, HEX, None, None, 1, 64, 1, keep=True)
    made = directory.Sandbox.create(store, spec)
    made.take_name()
    made.release()
    disk = store.root / "disks" / f"{HEX}.raw"
    disk.write_bytes(b"disk")
    os.chown(disk, ALICE, ALICE)

    def look() -> object:
        (found,) = lookup.all_of(store)
        assert isinstance(found, Unreadable)
        assert prune(store, 0, None, dry_run=False) == []
        return found.reason

    assert as_user(ALICE, look) == "lock: Permission denied (owner: root)"
    assert disk.exists()

    def remove() -> None:
        directory.remove(lookup.find_any(store, "roots"))

    said = as_user(ALICE, remove)
    assert said.startswith("refused: cannot remove sandbox roots: ")
    assert "sudo chown -R" in said
    assert (store.sandboxes / "roots" / "state.json").exists()
    for path in (made.folder, *made.folder.iterdir()):
        os.chown(path, ALICE, ALICE)
    assert as_user(ALICE, remove) == "None"
    assert not made.folder.exists()


@needs_root
@pytest.mark.parametrize("value", [None, ""])
def test_no_home_and_no_entry_in_passwd(place: Path, value: str | None) -> None:
    def without() -> str:
        os.environ.pop("HOME", None)
        if value is not None:
            os.environ["HOME"] = value
        return opened()

    said = as_user(ALICE, without)
    assert said.startswith("refused: ")
    assert said.endswith("set HOME or ROOTDISK_STORE")


@needs_root
def test_a_cache_of_another_user_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `imagetool build` keeps is believed and published: root does not take it from a user, nor anybody from all."""
    cache = place / "cache"
    cache.mkdir(mode=0o755)
    monkeypatch.setenv("ROOTDISK_CACHE", str(cache))
    build = ["build", "oci:none:1", "oci:none:2"]

    def said() -> str:
        done = subprocess.run([sys.executable, "-m", "imagetool", *build], capture_output=True, text=True, timeout=60)
        assert done.returncode in (1, 2)
        assert done.stderr.count("\n") == 1
        return done.stderr

    os.chown(cache, ALICE, ALICE)
    assert f"cache {cache} is not safe from other users: it belongs to" in said()
    os.chown(cache, 0, 0)
    cache.chmod(0o777)
    assert "others may write to it: set ROOTDISK_CACHE" in said()
    assert list(cache.iterdir()) == []
    monkeypatch.setenv("ROOTDISK_STORE_TRUSTED", "1")
    assert "none: No such file" in said()
    monkeypatch.delenv("ROOTDISK_STORE_TRUSTED")
    cache.chmod(0o755)
    assert "none: No such file" in said()
