"""The guest's init as a static program, made from init.c; the same bytes for the same compiler.

For another architecture than this machine's a cross compiler makes it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rootdisk.durable import atomic_write
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.system import process
from rootdisk.system.scratch import scratch

# In the order of a boot.
SOURCES = (
    *(
        "init.c",
        "template.c",
        "disk.c",
        "verity.c",
        "sha256.c",
        "mounts.c",
        "copy_up.c",
        "configure.c",
        "authority.c",
        "network.c",
        "port.c",
    ),
    *("log.c", "files.c", "records.c", "users.c", "signals.c", "program.c", "spawn.c"),
    *("frames.c", "sessions.c", "streams.c", "serve.c", "snapshot.c", "pack.c", "unpack.c", "trim.c"),
)
HEADERS = ("guest.h", "channel.h", "copy.h", "files.h", "log.h", "program.h", "records.h", "users.h")
FLAGS = (
    *(
        "-std=gnu11",
        "-D_GNU_SOURCE",
        "-Os",
        "-static",
        "-s",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-ffunction-sections",
        "-fdata-sections",
    ),
    *("-Wl,--gc-sections", "-Wl,--build-id=none", "-fno-ident", "-fno-asynchronous-unwind-tables"),
)
# What GCC and Debian call an architecture.
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def build_init(out: Path, platform: Platform) -> Digest:
    """The program for `platform` at `out`, mode 0755, and its digest. RootdiskError: no compiler, or it fails."""
    compiler = _compiler(platform)
    room = Path(__file__).parent / "c"
    with scratch(out.parent, ".init-") as work:
        program = work / "init"
        # From its own directory with relative names, so that no path of this machine gets into the program.
        command = [compiler, *FLAGS, "-o", str(program), *SOURCES]
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LC_ALL": "C",
            "SOURCE_DATE_EPOCH": "0",
            "TMPDIR": str(work),
        }
        done = process.run(command, cwd=room, env=environment)
        if done.status:
            raise RootdiskError(f"{Path(compiler).name} failed on the guest's init: {done.complaint.strip()[-800:]}")
        data = program.read_bytes()
    atomic_write(out, data, 0o755, durable=False)
    return Digest.of(data)


def _compiler(platform: Platform) -> str:
    machine = MACHINES.get(platform.architecture)
    if machine is None:
        raise BadInput(f"no init for {platform}", f"the guest's init is made for {' and '.join(MACHINES)}")
    native = platform.architecture == Platform.host().architecture
    names = (*(("musl-gcc", "gcc") if native else ()), f"{machine}-linux-musl-gcc", f"{machine}-linux-gnu-gcc")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        package = "musl-tools" if native else f"gcc-{machine.replace('_', '-')}-linux-gnu"
        raise RootdiskError(f"no C compiler for the guest's init on {platform}", f"apt-get install {package}")
    return found
