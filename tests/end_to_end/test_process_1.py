"""systemd as process 1 of a Debian image: it starts everything, answers, and powers off cleanly."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagetool.demo.debian import install
from tests.support.commands import ROOT, Runner, run
from tests.support.layouts import write_layout

pytestmark = [pytest.mark.vm, pytest.mark.nightly]
START_S = 120.0


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, demo: str) -> str:
    """A disk of Debian with systemd; its image does not say which stop signal it wants."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    folder = tmp_path_factory.mktemp("systemd")
    system = install(folder, "amd64", "systemd-sysv dbus").python.read_bytes()
    write_layout(
        folder / "image", "t", [system], {"Entrypoint": ["/sbin/init"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
    )
    (folder / "cache").mkdir()
    (folder / "cache/kernels").symlink_to(ROOT / "cache/kernels")
    built = run(
        "imagetool",
        "build",
        "-q",
        "--size",
        "2GiB",
        f"oci:{folder}/image:t",
        f"oci:{folder}/disks:t",
        cwd=folder,
        timeout=600,
    )
    assert built.returncode == 0, built.stderr
    return f"oci:{folder}/disks:t"


@pytest.fixture
def systemd(artifact: str, runner: Runner, tmp_path: Path) -> Iterator[str]:
    booted = runner("boot", "-d", "--name", "systemd", artifact)
    assert booted.returncode == 0, booted.stderr
    _wait_for_start(runner)
    yield "systemd"
    runner("rm", "-f", "systemd")


def _wait_for_start(runner: Runner) -> None:
    """Ask systemd, which has no bus in its first seconds."""
    end, done = time.monotonic() + START_S, None
    while time.monotonic() < end:
        done = runner("exec", "systemd", "systemctl", "is-system-running", "--wait")
        if done.returncode == 0:
            return
    pytest.fail(f"not running after {START_S:g} s: {done}")


def test_it_starts_and_is_stopped(systemd: str, runner: Runner) -> None:
    assert runner("exec", systemd, "systemctl", "is-active", "multi-user.target").stdout == "active\n"
    assert runner("exec", systemd, "cat", "/proc/1/comm").stdout == "systemd\n"
    failed = runner("exec", systemd, "systemctl", "--failed", "--no-legend", "--plain", "--no-pager").stdout
    assert failed == ""
    assert runner("stop", "-t", "60", systemd).returncode == 0
    assert runner("wait", systemd).stdout.split()[-1] == "0"
    assert runner("start", systemd).returncode == 0
    _wait_for_start(runner)


@pytest.mark.parametrize(("order", "status"), [("poweroff", "0"), ("halt", "0"), ("reboot", "129")])
def test_it_is_ended_from_inside(systemd: str, runner: Runner, order: str, status: str) -> None:
    runner("exec", systemd, "systemctl", order)
    assert runner("wait", systemd, timeout=120).stdout.split()[-1] == status
