"""The command doctor: check what this machine can do, and say how to fix what is missing."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rootdisk.cli.rows import write_rows
from rootdisk.errors import RegistryError, RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import registry_of
from rootdisk.oci.repository import RegistryOptions
from rootdisk.system import process
from rootdisk.text import one_line, printable
from runner.machine import accelerator, cgroup, krun, passt, qemu, virtiofsd
from runner.machine.packages import how_to_install
from runner.store.store import Store
from runner.template import saved

FREE_MIN_BYTES = 2 << 30
# On these, locks between hosts or holes in files do not work as the store needs them.
NETWORK_TYPES = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs")


class Line(NamedTuple):
    """The result of a check."""

    what: str
    good: bool
    text: str
    needed: bool = False  # nothing boots without it, or the user asked for it

    @property
    def mark(self) -> str:
        """Return ok, warn or FAIL."""
        return "ok" if self.good else "FAIL" if self.needed else "warn"


def doctor_command(options: argparse.Namespace) -> int:
    """Show what this machine can do for this user, and how to fix what is missing; return 1 if a needed check fails."""
    registries = [registry_of(text) for text in options.registry]
    connection = RegistryOptions(plain_http=options.plain_http, ca_file=options.ca_file, read_timeout_s=10)
    lines = [*_machine(), *_store(), *(_registry(name, connection) for name in registries)]
    if options.json:
        write_rows([{**line._asdict(), "mark": line.mark} for line in lines])
    else:
        width = max(len(line.what) for line in lines)
        for line in lines:
            print(f"{line.mark:4}  {one_line(line.what):{width}}  {one_line(line.text)}")
    return 0 if all(line.good for line in lines if line.needed) else 1


def _machine() -> Iterator[Line]:
    host = Platform.host()
    try:
        path = qemu.program(host)
        yield Line("qemu", True, f"{_version(path)}, {path}", needed=True)
    except RootdiskError as err:
        yield Line("qemu", False, str(err), needed=not krun.is_installed())
    if krun.is_installed():
        yield Line("libkrun", True, krun.library())
    try:
        verdicts = Store.open().root / "kvm.json"
    except RootdiskError:
        verdicts = None
    chosen = accelerator.choose(None, host, verdicts)
    slow = "; guests run about ten times slower" if chosen.name == "tcg" else ""
    yield Line("accelerator", chosen.name == "kvm", f"{chosen.name}: {chosen.reason}{slow}")
    yield _volumes()
    yield _network()
    yield _limits()


def _volumes() -> Line:
    """Check whether this user can share directories, read-only ones too."""
    try:
        path = virtiofsd.program()
    except RootdiskError as err:
        return Line("volumes", False, f"{err.message}: {how_to_install('virtiofsd')}")
    if os.geteuid() == 0:
        return Line("volumes", True, path)
    try:
        virtiofsd.check_user(path)
    except RootdiskError as err:
        return Line("volumes", False, str(err).removeprefix("--volume: "))
    if not virtiofsd.has_user_namespaces():
        text = f"{path}; :ro does not work for you: user namespaces are off: sysctl user.max_user_namespaces"
        return Line("volumes", False, text)
    return Line("volumes", True, path)


def _network() -> Line:
    if passt.is_usable():
        return Line("network", True, "passt")
    remedy = how_to_install("passt")
    text = "QEMU's own: a guest reaches services on this host's 127.0.0.1 at 10.0.2.2. passt of 2024 or newer prevents that"
    return Line("network", False, f"{text}, and is faster: {remedy}; or boot with --allow HOST or --network none")


def _limits() -> Line:
    """Say whether this host can limit what QEMU takes."""
    try:
        folder = cgroup.delegated()
    except cgroup.NotDelegated as err:
        return Line("limits", False, f"none of this host on QEMU: {err}")
    lacks = cgroup.missing(folder)
    text = f"cgroups of sandboxes in {printable(folder)}"
    return Line("limits", not lacks, f"{text}, without {', '.join(lacks)}" if lacks else text)


def _version(path: str) -> str:
    done = process.run([path, "--version"], timeout_s=process.PROBE_S)
    return done.text.partition("\n")[0].removeprefix("QEMU emulator version ") or "does not run"


def _store() -> Iterator[Line]:
    try:
        store = Store.open()
    except RootdiskError as err:
        yield Line("store", False, str(err), needed=True)
        return
    for folder in (store.root, *(store.root / name for name in store.FOLDERS)):
        try:
            with os.scandir(folder):
                pass
            probe = folder / f".doctor-{os.getpid()}"
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            probe.unlink()
        except OSError as err:
            fix = f"sudo chown -R {os.geteuid()} {store.root} && chmod -R u+rwX {store.root}"
            advice = "make room: runner prune" if err.errno in (errno.ENOSPC, errno.EDQUOT) else fix
            yield Line("store", False, f"{folder}: {err.strerror}: {advice}", needed=True)
            return
    free = shutil.disk_usage(store.root).free
    enough = free > FREE_MIN_BYTES
    remedy = "" if enough else "; make room: runner prune"
    yield Line("store", enough, f"{store.root}, {free / 1e9:.1f} GB free{remedy}", needed=True)
    yield from _templates(store)
    yield from _snapshots(store)
    kind = _file_system(store.root)
    if kind in NETWORK_TYPES:
        text = f"{kind}: locks and holes are not reliable between hosts: set ROOTDISK_STORE to a local directory"
        yield Line("file system", False, text)
    else:
        yield Line("file system", True, f"{kind}; disks are shared by {_sharing(store.root)}")


def _templates(store: Store) -> Iterator[Line]:
    """Name the saved machines from which boots start, and why others failed."""
    if saved.is_off():
        yield Line("templates", True, f"off: {saved.OFF}=0; every boot is cold")
        return
    templates = list(saved.all_of(store))
    size = sum(template.disk_bytes for template in templates) / 1e6
    names = "; ".join(f"{template.what}, {template.age_s / 3600:.0f} h old" for template in templates)
    yield Line("templates", True, f"{size:.0f} MB: {names}" if templates else "none yet: the first boot makes one")
    yield Line(
        "freed memory", True, "goes back to the host only with --cold or volumes: QEMU cannot take it from a template"
    )
    for why in saved.failures(store):
        yield Line("templates", False, f"one failed: {why}; boots are cold: runner boot --debug shows more")


def _snapshots(store: Store) -> Iterator[Line]:
    """Say what snapshots take, and which cannot be read."""
    from runner.sandbox import snapshots

    rows = list(snapshots.all_of(store))
    good = [row for row in rows if isinstance(row, snapshots.Snapshot)]
    if good:
        size = sum(row.disk_bytes for row in good) / 1e6
        yield Line("snapshots", True, f"{len(good)}, {size:.0f} MB: runner snapshots")
    for row in rows:
        if isinstance(row, snapshots.Unreadable):
            name = printable(row.name)
            yield Line("snapshots", False, f"{name} cannot be read: {row.reason}: runner rm --snapshot {name}")


def _sharing(root: Path) -> str:
    from rootdisk.durable import reflink

    source, target = (root / f".doctor-{os.getpid()}-{name}" for name in "ab")
    try:
        source.write_bytes(bytes(4096))
        return "qcow2 overlay or reflink" if reflink(source, target) else "qcow2 overlay; reflink needs xfs or btrfs"
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)


def _file_system(path: Path) -> str:
    """Return the type of the file system of `path`; proc(5), mountinfo."""
    number = os.stat(path).st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    best, kind = -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        fields = line.split()
        mount = fields[4]
        matches = fields[2] == wanted or (fields[2].startswith("0:") and Path(mount) in (path, *path.parents))
        if matches and len(mount) > best and (Path(mount) in (path, *path.parents)):
            best, kind = len(mount), fields[fields.index("-") + 1]
    return kind


def _registry(name: str, connection: RegistryOptions) -> Line:
    """Check that a registry answers, by HTTPS or HTTP. No credentials are sent; asking for a password is an answer."""
    from rootdisk.registry.client import RegistryClient

    why = ""
    for plain_http in (True,) if connection.plain_http else (False, True):
        client = RegistryClient(name, "name", connection._replace(plain_http=plain_http))
        url = client.url("/v2/")
        try:
            with client.session.once("GET", url, headers={}) as answer:
                note = (
                    ""
                    if not plain_http
                    else " over HTTP"
                    if connection.plain_http
                    else " over HTTP only: use --plain-http"
                )
                good = answer.status in (200, 401)
                return Line(name, good, f"answers {answer.status}{note}", needed=True)
        except RegistryError as err:
            reason = err.message.partition(": ")[2].rpartition(" (")[0]  # without name and request
            why = why or reason
            if "certificate" in reason:
                return Line(name, False, f"{reason}: {err.hint}", needed=True)
        except RootdiskError as err:
            return Line(name, False, str(err), needed=True)
        finally:
            client.close()
    return Line(name, False, f"does not answer: {why}: check the name, the network and the proxy", needed=True)
