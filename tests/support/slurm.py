"""A Slurm cluster of two nodes on this machine: munged, slurmctld and two slurmd, of Debian's packages."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.waiting import until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
needs_slurm = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)),
    reason="Slurm is not installed, or this is not root: apt-get install slurmctld slurmd slurm-client munge",
)
_CONFIGURATION = """\
ClusterName=trial
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={room}/munge.socket
StateSaveLocation={room}/state
SlurmdSpoolDir={room}/spool.%n
SlurmctldPidFile={room}/slurmctld.pid
SlurmdPidFile={room}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName=n1 NodeHostname=localhost Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname=localhost Port={ports[2]} CPUs=2
PartitionName=main Nodes=n1,n2 Default=YES State=UP
"""


@dataclass(frozen=True)
class Slurm:
    room: Path

    def run(self, *command: str) -> str:
        environment = {**os.environ, "SLURM_CONF": str(self.room / "slurm.conf")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=self.room)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, script: str, *options: str) -> str:
        """Submit a batch script; the number of the job."""
        (self.room / "job.sh").write_text(script)
        return self.run("sbatch", "--parsable", "-o", f"{self.room}/out.%A.%a", *options, "job.sh").strip()

    def tasks(self, job: str) -> dict[str, dict[str, str]]:
        """What Slurm knows of each task of a job, by its number in the array."""
        found = {}
        for block in self.run("scontrol", "show", "job", job).split("\n\n"):
            fields = dict(re.findall(r"(\w+)=(\S*)", block))
            if fields:
                found[fields.get("ArrayTaskId", "")] = fields
        return found


@contextlib.contextmanager
def run_slurm(room: Path) -> Iterator[Slurm]:
    """A cluster with its files in `room`."""
    ports = [free_port() for _ in range(3)]
    (room / "slurm.conf").write_text(_CONFIGURATION.format(room=room, ports=ports))
    for folder in ("state", "spool.n1", "spool.n2"):
        (room / folder).mkdir()
    (room / "munge.key").write_bytes(os.urandom(1024))
    (room / "munge.key").chmod(0o600)
    files = {"key": "munge.key", "socket": "munge.socket", "pid": "munged.pid", "log": "munged.log", "seed": "seed"}
    munge = [f"--{name if name == 'socket' else f'{name}-file'}={room}/{file}" for name, file in files.items()]
    slurm = Slurm(room)
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> None:
            log = stack.enter_context((room / f"{'-'.join(command[::2])[:20]}.log".replace("/", "")).open("wb"))
            environment = {**os.environ, "SLURM_CONF": str(room / "slurm.conf")}
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)

        start("munged", "--foreground", "--force", *munge)
        until((room / "munge.socket").exists)
        start("slurmctld", "-D")
        for node in ("n1", "n2"):
            start("slurmd", "-D", "-N", node)
        until(lambda: _idle(slurm) == 2, 90)
        yield slurm


def _idle(slurm: Slurm) -> int:
    with contextlib.suppress(AssertionError):  # slurmctld does not answer yet
        return slurm.run("sinfo", "-h", "-N", "-o", "%t").split().count("idle")
    return 0
