"""Guests on other machines than the usual: an image for ARM, built and booted on whatever this machine is; a QEMU without microvm; memory that goes back."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Runner, run
from tests.support.layouts import write_layout
from tests.support.processes import resident_bytes
from tests.support.sandboxes import machines
from tests.support.tars import END, directory, file
from tests.support.waiting import until

pytestmark = pytest.mark.vm

COMPILER = "gcc" if platform.machine() == "aarch64" else "aarch64-linux-gnu-gcc"
PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include <sys/utsname.h>
int main(int argc, char **argv) {
    struct utsname name;
    uname(&name);
    printf("%s %s %s\\n", name.machine, argv[1], getenv("GREETING"));
    fprintf(stderr, "an error\\n");
    return 7;
}
"""


def program(folder: Path) -> bytes:
    """A static one, so that the image needs nothing else."""
    (folder / "program.c").write_text(PROGRAM)
    argv = [COMPILER, "-static", "-s", "-Os", "-o", "program", "program.c"]
    subprocess.run(argv, cwd=folder, check=True)
    return (folder / "program").read_bytes()


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="qemu-system-aarch64 is not installed")
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")
def test_an_arm64_image_boots(tmp_path: Path, runner: Runner) -> None:
    layer = directory(b"bin") + file(b"bin/program", program(tmp_path), mode=0o755) + END
    write_layout(tmp_path / "image", "1", [layer], {"Entrypoint": ["/bin/program"]}, architecture="arm64")
    artifact = f"oci:{tmp_path}/artifact:1"
    options = ("--platform", "linux/arm64", "--size", "256MiB")
    built = run("imagetool", "build", f"oci:{tmp_path}/image:1", artifact, *options, ROOTDISK_CACHE=f"{ROOT}/cache")
    assert built.returncode == 0, built.stderr
    done = runner("boot", "--platform", "linux/arm64", "-e", "GREETING=hello", artifact, "--", "there", timeout=200)
    assert (done.stdout, done.stderr, done.returncode) == ("aarch64 there hello\n", "an error\n", 7)


WITHOUT_MICROVM = """#!/bin/sh
[ "$2" != help ] || { echo "q35  Standard PC"; exit 0; }
exec QEMU "$@"
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="q35 is an x86 machine")
def test_a_qemu_without_microvm(demo: str, tmp_path: Path) -> None:
    """It is asked once, and again when it is another."""
    runner = Runner(tmp_path / "store")
    script = "cat /sys/class/dmi/id/product_name; exit 3"
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)  # QEMU is started by a user of its own
        program = Path(name, "qemu-system-x86_64")
        program.write_text(WITHOUT_MICROVM.replace("QEMU", str(shutil.which(program.name))))
        program.chmod(0o755)
        done = runner.boot(demo, script, PATH=f"{name}:{os.environ['PATH']}")
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("Standard PC (Q35")
    known = runner.store / "qemu.json"
    assert json.loads(known.read_bytes())["kind"] == "q35"
    done = runner.boot(demo, "exit 4")
    assert done.returncode == 4, done.stderr
    assert json.loads(known.read_bytes())["kind"] == "microvm"


@pytest.mark.nightly
def test_freed_memory_goes_back_to_the_host(runner: Runner, demo: str) -> None:
    """If the sandbox was booted with --cold: 200 MiB are filled and freed, and half a minute later the host has them."""

    def used_bytes() -> int:
        (pid,) = machines(runner, "frees")
        return resident_bytes(pid)

    script = "until test -e /dev/shm/fill; do sleep 0.1; done; head -c 200M /dev/zero >/dev/shm/x; touch /dev/shm/full; sleep 1000"
    assert runner.boot(demo, script, "-d", "--name", "frees", "--cold").returncode == 0
    time.sleep(3)
    idle = used_bytes()
    assert runner("exec", "frees", "touch", "/dev/shm/fill").returncode == 0
    until(lambda: runner("exec", "frees", "test", "-e", "/dev/shm/full").returncode == 0, 60)
    assert used_bytes() > idle + (190 << 20)
    assert runner("exec", "frees", "rm", "/dev/shm/x").returncode == 0
    until(lambda: used_bytes() < idle * 1.2)
    # It can be saved too. Sandboxes from its snapshot have the balloon without its driver.
    assert runner("snapshot", "frees", "freed").returncode == 0
    assert runner("boot", "-d", "--from", "freed", "--name", "other").returncode == 0
    assert "virtio_balloon" in runner("exec", "frees", "cat", "/proc/modules").stdout
    assert "virtio_balloon" not in runner("exec", "other", "cat", "/proc/modules").stdout
    assert runner("rm", "-f", "other").returncode == 0
    assert runner("rm", "--snapshot", "freed").returncode == 0
    assert runner("rm", "-f", "frees").returncode == 0
