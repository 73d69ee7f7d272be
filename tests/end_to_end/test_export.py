"""An exported directory boots with only what its files say, and ends as docs/layout-1.md, "Without a runner", says."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from rootdisk.artifact.published import open_artifact
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from runner.disk.slot import pack
from tests.support.commands import run
from tests.support.nomad import driver_command, read_job, task_of

pytestmark = [pytest.mark.vm, pytest.mark.nightly]


@pytest.fixture(scope="module")
def export(demo: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "vm"
    done = run("imagetool", "export", demo, "--to", f"dir:{path}")
    assert done.returncode == 0, done.stderr
    return path


def boot(folder: Path, *options: str) -> list[str]:
    """Lines on the console of a machine that ends by itself, but the kernel's: on a slow host it says that timers are late."""
    done = subprocess.run(
        [str(folder / "qemu.sh"), "-M", "accel=tcg", "-snapshot", *options],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line.strip() for line in done.stdout.splitlines() if not re.match(r"\[ *\d+\.\d+\] ", line)]


def with_slot(folder: Path, demo: str, *records: tuple[str, bytes]) -> str:
    """Fill the slot of the exported disk; the kernel command line that names it."""
    with open_artifact(parse_reference(demo), Platform.host()) as artifact:
        extent = artifact.config.slot()
    slot = pack(records, extent.length)
    fd = os.open(folder / "disk.raw", os.O_WRONLY)
    os.pwrite(fd, slot.data, extent.offset)
    os.close(fd)
    return f"{(folder / 'cmdline').read_text().strip()} rootdisk.slot={slot.digest}"


def test_it_boots_as_it_is(export: Path) -> None:
    lines = boot(export)
    assert "Hello from a rootdisk sandbox" in lines
    assert "rootdisk: exit 0" in lines


def test_the_slot_decides_the_program(export: Path, demo: str) -> None:
    script = "echo out; echo err >/dev/stderr; echo again >/dev/stdout; cat /etc/resolv.conf; id -u; exit 7"
    words = [("noentrypoint", b"1"), *(("cmd", word) for word in (b"sh", b"-c", script.encode()))]
    cmdline = with_slot(export, demo, *words)
    lines = boot(export, "-append", f"{cmdline} rootdisk.network=10.1.2.3/24,10.1.2.1,10.1.2.53")
    assert lines[:5] == ["out", "err", "again", "nameserver 10.1.2.53", "10001"]
    assert "rootdisk: exit 7" in lines


def test_what_fails_is_said(export: Path, demo: str) -> None:
    cmdline = (export / "cmdline").read_text().strip()
    lines = boot(export, "-append", f"{cmdline} rootdisk.network=10.1.2.3/33")
    assert lines[0].startswith("rootdisk: rootdisk.network: 10.1.2.3/33 is neither none, user nor")
    assert lines[1] == "rootdisk: exit 125"


def test_nomad_s_driver_boots_it(demo: str, tmp_path: Path) -> None:
    """As the driver does it: artifacts in the task's local/, their checksums compared, and QEMU started in the task's directory."""
    done = run("imagetool", "export", demo, "--to", f"dir:{tmp_path}/local", "--disk-format", "qcow2")
    assert done.returncode == 0, done.stderr
    task = task_of(read_job((tmp_path / "local/nomad.hcl").read_text()))
    for artifact in task["artifact"]:
        data = (tmp_path / "local" / artifact["source"].rpartition("/")[2]).read_bytes()
        assert artifact["options"] == [{"checksum": f"sha256:{hashlib.sha256(data).hexdigest()}"}]
    machine = subprocess.run(
        driver_command(task, "tcg"),
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert machine.returncode == 0, machine.stderr
    lines = [line.strip() for line in machine.stdout.splitlines()]
    assert "Hello from a rootdisk sandbox" in lines
    assert "rootdisk: exit 0" in lines
