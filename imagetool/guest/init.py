"""The guest's init as a static program, made from init.c; the same bytes for the same compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from runner.errors import RootdiskError
from runner.oci import Digest

SOURCES = ("init.c", "sha256.c", "setup.c", "process.c", "channel.c")
FLAGS = (
    *("-std=gnu11", "-Os", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-ffunction-sections", "-fdata-sections"),
    *("-Wl,--gc-sections", "-Wl,--build-id=none", "-fno-ident", "-fno-asynchronous-unwind-tables"),
)


def build_init(out: Path) -> Digest:
    """The program at `out`, mode 0755, and its digest. RootdiskError: no compiler, or it fails."""
    compiler = shutil.which("musl-gcc") or shutil.which("gcc")
    if compiler is None:
        raise RootdiskError("no C compiler for the guest's init", "apt-get install musl-tools")
    room = Path(__file__).parent
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        program = Path(work, "init")
        # From its own directory with relative names, so that no path of this machine gets into the program.
        command = [compiler, *FLAGS, "-o", str(program), *SOURCES]
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
        done = subprocess.run(
            command, cwd=room, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise RootdiskError(f"{Path(compiler).name} failed on the guest's init: {done.stderr.strip()[-800:]}")
        program.chmod(0o755)
        digest = Digest.of(program.read_bytes())
        program.replace(out)
    return digest
