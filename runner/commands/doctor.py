"""doctor: what this machine can do, and the remedy for what it cannot."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.system import process
from rootdisk.text import one_line
from runner.commands.options import write_json
from runner.machine import accelerator, backend, krun, passt, qemu, virtiofsd
from runner.store.store import Store

FREE_MIN_BYTES = 2 << 30
# Where locks between hosts or holes in files do not work as the store needs them.
NETWORK_TYPES = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs")


class Line(NamedTuple):
    what: str
    good: bool
    text: str
    needed: bool = False  # nothing boots without it


def doctor_command(options: argparse.Namespace) -> int:
    registries = [_named(text) for text in options.registry]
    lines = [*_machine(), *_store(), *map(_registry, registries)]
    if options.json:
        write_json([line._asdict() for line in lines])
    else:
        for line in lines:
            mark = "ok" if line.good else "NO" if line.needed else "no"
            print(f"{mark}  {line.what:12} {line.text}")
    return 0 if all(line.good for line in lines if line.needed) else 1


def _machine() -> Iterator[Line]:
    host = Platform.host()
    try:
        path = qemu.program(host)
        yield Line("qemu", True, f"{_version(path)}, {path}", needed=True)
    except RootdiskError as err:
        yield Line("qemu", False, f"{err.message}: {backend.hint(host)}", needed=not krun.is_installed())
    if krun.is_installed():
        yield Line("libkrun", True, krun.library())
    try:
        verdicts = Store.open().root / "kvm.json"
    except RootdiskError:
        verdicts = None
    chosen = accelerator.choose(None, host, verdicts)
    slow = "; guests run some ten times slower" if chosen.name == "tcg" else ""
    yield Line("accelerator", chosen.name == "kvm", f"{chosen.name}: {chosen.reason}{slow}")
    try:
        yield Line("volumes", True, virtiofsd.program())
    except RootdiskError as err:
        yield Line("volumes", False, str(err))
    faster = "passt" if passt.is_usable() else "QEMU's own; passt of 2024 or newer is faster"
    yield Line("network", True, faster)


def _version(path: str) -> str:
    done = process.run([path, "--version"], timeout_s=process.PROBE_S)
    return done.text.partition("\n")[0].removeprefix("QEMU emulator version ") or "does not run"


def _store() -> Iterator[Line]:
    try:
        store = Store.open()
    except RootdiskError as err:
        yield Line("store", False, str(err), needed=True)
        return
    free = shutil.disk_usage(store.root).free
    enough = free > FREE_MIN_BYTES
    remedy = "" if enough else "; make room: runner prune"
    yield Line("store", enough, f"{store.root}, {free / 1e9:.1f} GB free{remedy}", needed=True)
    kind = _file_system(store.root)
    if kind in NETWORK_TYPES:
        text = f"{kind}: between hosts neither locks nor holes can be relied on: set ROOTDISK_STORE to a local place"
        yield Line("file system", False, text)
    else:
        yield Line("file system", True, f"{kind}; disks are shared by {_sharing(store.root)}")


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
    """The type of the file system that `path` is on; proc(5), mountinfo."""
    number = os.stat(path).st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    best, kind = -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        fields = line.split()
        mount = fields[4]
        is_it = fields[2] == wanted or (fields[2].startswith("0:") and Path(mount) in (path, *path.parents))
        if is_it and len(mount) > best and (Path(mount) in (path, *path.parents)):
            best, kind = len(mount), fields[fields.index("-") + 1]
    return kind


def _named(text: str) -> str:
    """The registry that `text` names; BadInput."""
    found = None
    with contextlib.suppress(BadInput):
        found = parse_reference(f"{text}/name").registry
    if found is None or found.lower() != text.lower():
        raise BadInput(f"{text!r:.80} is no registry", "write HOST or HOST:PORT, as registry.example:5000")
    return found


def _registry(name: str) -> Line:
    """Whether a registry answers at all; that it wants a password is an answer. It gets no credentials."""
    import requests
    import urllib3

    from rootdisk.registry.answers import network_error
    from rootdisk.registry.client import RegistryClient

    for plain_http in (False, True):
        client = RegistryClient(name, "name", RegistryOptions(plain_http=plain_http, read_timeout_s=10))
        url = client.url("/v2/")
        try:
            with client.session.once("GET", url, headers={}) as answer:
                note = " over HTTP: --plain-http" if plain_http else ""
                return Line(name, answer.status_code in (200, 401), f"answers {answer.status_code}{note}")
        except RootdiskError as err:
            return Line(name, False, one_line(str(err)))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as err:
            found = network_error("GET", str(url), err)
            if "certificate" in found.message:
                return Line(name, False, one_line(str(found)))
        finally:
            client.close()
    return Line(name, False, "does not answer: is the name right, the network up, a proxy needed?")
