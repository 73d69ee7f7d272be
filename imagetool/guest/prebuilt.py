"""The prebuilt guest's init in wheels and sdists: for both architectures, so that no compiler is needed.

The build backend makes them, in `built`/ beside this module, by one pinned compiler that comes from PyPI with musl in it:
the bytes are the same on every machine. `built`/inits.json says of which sources they are and which digests they have;
inits of other sources, as in a checkout that has been worked in since, are not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

from imagetool.guest.init import FLAGS, HEADERS, MACHINES, SOURCES
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.system import process

COMPILER = "ziglang==0.17.1"
SOURCE_DIR = Path(__file__).parent / "c"
BUILT = Path(__file__).parent / "built"
RECEIPT = "inits.json"


def read_init(platform: Platform) -> bytes | None:
    """The program for `platform`, if there is one of the present sources; RootdiskError where it is damaged."""
    digest = _digests(BUILT).get(platform.architecture)
    if digest is None:
        return None
    data = (BUILT / platform.architecture).read_bytes()
    if str(Digest.of(data)) != digest:
        raise RootdiskError(f"{BUILT / platform.architecture} is damaged", "install rootdisk again")
    return data


def are_built() -> bool:
    """Tell whether all programs are there, of the present sources."""
    return _digests(BUILT).keys() == MACHINES.keys()


def build_all(out: Path = BUILT) -> dict[str, str]:
    """Every architecture's program in `out`, and their digests. RootdiskError: the compiler is missing, or it fails."""
    out.mkdir(parents=True, exist_ok=True)
    (out / RECEIPT).unlink(missing_ok=True)
    digests = {}
    with tempfile.TemporaryDirectory() as cache:
        for architecture, machine in MACHINES.items():
            digests[architecture] = str(_build(machine, out / architecture, cache))
    receipt = {"sources": sources(), "compiler": COMPILER, "digests": digests}
    (out / RECEIPT).write_text(json.dumps(receipt, indent=1, sort_keys=True) + "\n")
    return digests


def _build(machine: str, out: Path, cache: str) -> Digest:
    # From its own directory with relative names, so that no path of this machine gets into the program.
    command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl", *FLAGS]
    command += ["-o", str(out.absolute()), *SOURCES]
    environment = {**os.environ, "LC_ALL": "C", "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    done = process.run(command, cwd=SOURCE_DIR, env=environment)
    if done.status:
        raise RootdiskError(
            f"the guest's init for {machine}: {done.complaint.strip()[-800:]}", f"pip install {COMPILER}"
        )
    out.chmod(0o644)
    return Digest.of(out.read_bytes())


def _digests(folder: Path) -> dict[str, str]:
    """Digests by architecture; none where the programs are of other sources, or there are none."""
    try:
        receipt = json.loads((folder / RECEIPT).read_bytes())
    except FileNotFoundError:
        return {}
    return dict(receipt["digests"]) if receipt["sources"] == sources() else {}


def sources() -> str:
    """Return a digest of all that decides the programs."""
    digest = hashlib.sha256(json.dumps([COMPILER, FLAGS]).encode())
    for path in (SOURCE_DIR / name for name in (*HEADERS, *SOURCES)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
