"""Run in a guest, which is a host with cgroups of version 2: sandboxes in them, in place of the machine libkrun's stand-in.

Arguments: the stand-in, the demo's artifact.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TOP = Path("/sys/fs/cgroup")
OPTIONS = ("--backend", "krun", "--accel", "kvm", "--network", "none", "-m", "256m", "--cpus", "2")


def runner(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "runner", *words], capture_output=True, text=True)


def plays(what: str) -> None:
    Path(f"{sys.argv[1]}.guest").write_text(what)


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def ours(folder: Path) -> list[Path]:
    return list(folder.glob("rootdisk-*"))


def sleeps(name: str, folder: Path) -> Path:
    """Boot a sandbox; return the cgroup of its machine, which is in `folder`."""
    done = runner("boot", "-d", "--name", name, *OPTIONS, sys.argv[2])
    assert done.returncode == 0, done.stderr
    (cgroup,) = ours(folder)
    return cgroup


def keeper(name: str) -> int:
    return int(json.loads(runner("inspect", name).stdout)["pid"])


def main() -> None:
    assert f" cgroups of sandboxes in {TOP}\n" in runner("doctor").stdout
    assert (
        " none of this host on QEMU: off"
        in subprocess.run(
            [sys.executable, "-m", "runner", "doctor"],
            env={**os.environ, "ROOTDISK_CGROUP": "0"},
            capture_output=True,
            text=True,
        ).stdout
    )

    plays("eat")
    done = runner("boot", "--keep", "--name", "eats", *OPTIONS, sys.argv[2])
    text = (
        "the kernel has killed the machine at the memory limit of its cgroup, 465 MiB: 256 for the guest, 209 for QEMU"
    )
    assert (done.returncode, text in done.stderr) == (125, True), done.stderr
    row = json.loads(runner("inspect", "eats").stdout)
    assert (row["status"], row["error"], row["last_event"]["error"]) == (125, text, text)
    assert not ours(TOP)

    plays("sleep")
    cgroup = sleeps("sleeps", TOP)
    assert json.loads(runner("inspect", "sleeps").stdout)["in_use"]["cgroup"] == str(cgroup)
    values = {name: (cgroup / name).read_text().strip() for name in ("memory.max", "cpu.max", "pids.max")}
    assert values == {"memory.max": str(465 << 20), "cpu.max": "200000 100000", "pids.max": "258"}
    machine = (cgroup / "cgroup.procs").read_text().split()
    assert machine
    assert str(keeper("sleeps")) not in machine
    os.kill(keeper("sleeps"), signal.SIGKILL)
    until(lambda: "populated 0" in (cgroup / "cgroup.events").read_text())
    assert runner("prune", "--dry-run").returncode == 0
    assert not ours(TOP)
    assert runner("start", "sleeps").returncode == 0
    (again,) = ours(TOP)
    os.kill(keeper("sleeps"), signal.SIGKILL)
    until(lambda: "populated 0" in (again / "cgroup.events").read_text())
    assert runner("start", "sleeps").returncode == 0  # it removes what is left of the last run
    assert len(ours(TOP)) == 1
    assert again not in ours(TOP)
    assert runner("rm", "-f", "sleeps").returncode == 0
    assert not ours(TOP)

    unit = TOP / "unit"  # a cgroup with processes of its own
    unit.mkdir()
    (unit / "cgroup.procs").write_text(str(os.getpid()))
    os.makedirs("/run/systemd/system")  # then only what is marked is delegated
    assert f"{unit} is not delegated to you" in runner("doctor").stdout
    os.setxattr(unit, "trusted.delegate", b"1")
    cgroup = sleeps("beside", unit)
    assert (cgroup / "pids.max").read_text() == "258\n"
    assert Path("/proc/self/cgroup").read_text() == "0::/unit/rootdisk\n"
    second = runner("boot", "-d", "--name", "second", *OPTIONS, sys.argv[2])
    assert second.returncode == 0, second.stderr
    assert len(ours(unit)) == 2
    assert runner("stop", "beside", "second").returncode == 0
    assert not ours(unit)
    print("done")


main()
