"""What a program sees: each row of docs/layout-1.md's table, asked from inside, for the main program and for exec."""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.commands import ROOT, Runner, run
from tests.support.layouts import write_layout
from tests.support.terminals import read_terminal
from tests.support.waiting import until

pytestmark = pytest.mark.vm

PASSWD = "root:x:0:0:root:/root:/bin/sh\nmia:x:1000:1001::/home/mia:/bin/sh\nbig:x:4294967296:0::/:\n"
GROUP = "root:x:0:\nmia:x:1001:\nwheel:x:10:mia\nother:x:20:nobody\n"
USERS = {"root": (0, 0, [0], "/root"), "mia": (1000, 1001, [10, 1001], "/home/mia"), "1234:20": (1234, 20, [20], "/")}
DEVICES = {"null": "1,3", "zero": "1,5", "full": "1,7", "random": "1,8", "urandom": "1,9", "tty": "5,0"}


class Context(NamedTuple):
    """How a program was started."""

    user: str = "root"
    terminal: bool = False
    stdin: bool = False
    workdir: str = "/work/deep"
    host: str = "box"


def rows() -> dict[str, str]:
    """The table: what is asked for, and what there is here."""
    text = (ROOT / "docs/layout-1.md").read_text()
    section = text.partition("## What a program sees\n")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            found.update(dict.fromkeys(re.findall("`([^`]+)`", cells[0]), cells[2]))
    return found


def stream(number: int, at: Context) -> str:
    if at.terminal:
        return "terminal, own, can be opened"
    return "pipe, own, can be opened" if number or at.stdin else "/dev/null, own, can be opened"


# Rows whose value depends on how a program is started.
DEPENDS: dict[str, Callable[[Context], str]] = {
    "uid": lambda at: str(USERS[at.user][0]),
    "gid": lambda at: str(USERS[at.user][1]),
    "groups": lambda at: " ".join(map(str, USERS[at.user][2])),
    "HOME": lambda at: USERS[at.user][3],
    "HOSTNAME": lambda at: at.host,
    "TERM": lambda at: "vt220" if at.terminal else "(unset)",
    "container": lambda at: "(unset)",
    "process-1": lambda at: "no",
    "terminal": lambda at: "yes" if at.terminal else "no",
    "stream-0": lambda at: stream(0, at),
    "stream-1": lambda at: stream(1, at),
    "stream-2": lambda at: stream(2, at),
    "workdir": lambda at: at.workdir,
    "capabilities": lambda at: "000001ffffffffff" if at.user == "root" else "0" * 16,
    "hosts": lambda at: "127.0.0.1 localhost",
    "resolv.conf": lambda at: "nameserver 10.0.2.3",
    "hostname": lambda at: at.host,
    "mount-/": lambda at: "1 ext4 rw",
    "mount-/dev/shm": lambda at: "1 tmpfs rw,nosuid,nodev",
    "mount-/run": lambda at: "1 tmpfs rw,nosuid,nodev",
    "/etc/mtab": lambda at: "-> /proc/mounts",
}
DEPENDS.update({f"/dev/{name}": partial("c{} 0666".format, numbers) for name, numbers in DEVICES.items()})


def check(said: str, at: Context, **other: str) -> None:
    """Every row of the table, and nothing but the table."""
    found = dict(
        line.rstrip("\r").split(" ", 1) for line in said.splitlines() if " " in line and not line.startswith("runner: ")
    )
    expected, actual = {}, {}
    for name, here in rows().items():
        if name == "directory":
            continue
        literal = re.fullmatch("`([^`]*)`", here)
        assert literal or name in DEPENDS, f"{name}: neither a value in the table nor one in this test"
        expected[name] = (
            other[name] if name in other else DEPENDS[name](at) if name in DEPENDS else literal[1] if literal else ""
        )
        actual[name] = found.pop(name, "(missing)").strip()
    assert actual == expected, at
    assert not [name for name in found if not name.startswith("directory-")], "the table has no row for these"


def image(folder: Path, config: dict[str, Any], more: Callable[[tarfile.TarFile], None] | None = None) -> str:
    """A layout with the probe as its only program."""
    compiler = shutil.which("musl-gcc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    probe = folder / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("guest") / "probe.c"
    subprocess.run([compiler, "-static", "-Os", "-Wall", "-Wextra", "-Werror", "-o", probe, source], check=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add(tar, "bin/probe", probe.read_bytes(), mode=0o755)
        if more is not None:
            more(tar)
    write_layout(folder / "layout", "t", [buffer.getvalue()], config)
    return f"oci:{folder}/layout:t"


def add(
    tar: tarfile.TarFile, name: str, data: bytes | None = None, *, link: str = "", mode: int = 0o755, owner: int = 0
) -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.uid, member.gid = mode, owner, owner
    member.type = tarfile.SYMTYPE if link else tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    member.linkname, member.size = link, len(data or b"")
    tar.addfile(member, io.BytesIO(data or b""))


def accounts(tar: tarfile.TarFile) -> None:
    add(tar, "etc/passwd", PASSWD.encode(), mode=0o644)
    add(tar, "etc/group", GROUP.encode(), mode=0o644)
    add(tar, "bin/orphan", b"#!/no/such/interpreter\n")
    add(tar, "bin/windows", b"#!/bin/probe\r\n")
    add(tar, "bin/unmarked", b"exit 0\n")
    add(tar, "root", mode=0o700)
    add(tar, "tmp", mode=0o1777)
    add(tar, "run/sshd")
    add(tar, "run/postgresql", mode=0o2775, owner=1000)
    add(tar, "run/postgresql/kept", b"x" * 100_000, mode=0o640, owner=1000)
    add(tar, "run/link", link="sshd")
    add(tar, "var/run", link="/run")
    add(tar, "lead", link="/var/run/rootdisk")


def build(project: Path, source: str, name: str) -> str:
    done = run(
        "imagetool", "build", "-q", "--size", "64MiB", source, f"oci:{project}/disks:{name}", cwd=project, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return f"oci:{project}/disks:{name}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, demo: str) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    (folder / "cache").mkdir()
    (folder / "cache/kernels").symlink_to(ROOT / "cache/kernels")
    return folder


@pytest.fixture(scope="module")
def artifact(place: Path) -> str:
    config: dict[str, Any] = {
        "Entrypoint": ["/bin/probe", "/data", "/var/lib/db", "/run/sshd", "/run/postgresql", "/tmp"]
    }
    config |= {"WorkingDir": "/work/deep", "Volumes": {"/data": {}, "/var/lib/db": {}}, "StopSignal": "SIGRTMIN+3"}
    config |= {"Env": ["HOME="]}  # is none: the user's counts
    return build(place, image(place / "image", config, accounts), "probe")


def in_terminal(runner: Runner, *words: str, status: int = 0) -> str:
    """A command on a terminal of its own, and what it says there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", *words],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
        env={**os.environ, "ROOTDISK_STORE": str(runner.store), "TERM": "vt220"},
    )  # fmt: skip
    os.close(theirs)
    said = read_terminal(ours)
    os.close(ours)
    assert process.wait(60) == status, said
    return said.decode()


@pytest.fixture(scope="module")
def machine(artifact: str, runner: Runner) -> Iterator[str]:
    """A sandbox whose program prints what it finds, and waits."""
    done = runner(
        "boot",
        "-d",
        "--name",
        "box",
        artifact,
        "--",
        "--wait",
        "/data",
        "/var/lib/db",
        "/run/sshd",
        "/run/postgresql",
        "/tmp",
    )
    assert done.returncode == 0, done.stderr
    yield "box"
    runner("rm", "-f", "box")


def written(runner: Runner, name: str) -> str:
    """What the program of a sandbox has written, when that is all."""
    return until(lambda: said if (said := runner("logs", name).stdout).endswith("\nwaiting\n") else "")


def test_the_main_program(machine: str, runner: Runner) -> None:
    said = written(runner, machine)
    check(said, Context())
    assert "directory-/data 0:0 0755" in said
    assert "directory-/var/lib/db 0:0 0755" in said
    assert "directory-/run/sshd 0:0 0755" in said
    assert "directory-/run/postgresql 1000:1000 2775" in said
    assert "directory-/tmp 0:0 1777" in said


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("terminal", [False, True], ids=["plain", "terminal"])
def test_exec(machine: str, runner: Runner, user: str, terminal: bool) -> None:
    at = Context(user, terminal, terminal, "/root")
    words = ["exec", "-u", user, "-w", "/root", machine, "/bin/probe"]
    check(in_terminal(runner, *[words[0], "-it", *words[1:]]) if terminal else runner(*words).stdout, at)
    if not terminal:
        check(runner("exec", "-i", *words[1:]).stdout, at._replace(stdin=True))


def test_errors_of_a_session_are_its_own(machine: str, runner: Runner) -> None:
    """Each ends with a line and 125, 126 or 127; the machine lives."""
    for words, status, text in (
        (["-u", "nobody-here", machine, "/bin/probe"], 125, "no user nobody-here"),
        (["-u", "mia:nothing", machine, "/bin/probe"], 125, "no group nothing"),
        (["-u", "big", machine, "/bin/probe"], 125, "from 0 to 4294967294"),
        (["-u", "4294967296", machine, "/bin/probe"], 125, "0 to 4294967294"),
        (["-u", "0:4294967295", machine, "/bin/probe"], 125, "0 to 4294967294"),
        (["-w", "/etc/passwd", machine, "/bin/probe"], 126, "working directory /etc/passwd: Not a directory"),
        (["-w", "/no/where", machine, "/bin/probe"], 126, "working directory /no/where: No such file or directory"),
        ([machine, "/no/such/program"], 127, "cannot run /no/such/program"),
        ([machine, "/no/\x1b[31mred\n\udcff"], 127, r"cannot run /no/\x1b[31mred\n\xff: No such file"),
        (["-w", "/no/\x9b", machine, "/bin/probe"], 126, r"working directory /no/\x9b: No such file or directory"),
        ([machine, "/etc"], 126, "cannot run /etc"),
        ([machine, "/etc/passwd"], 126, "cannot run /etc/passwd"),
        (
            [machine, "/bin/orphan"],
            127,
            "cannot run /bin/orphan: its interpreter /no/such/interpreter is not in the image",
        ),
        ([machine, ""], 127, "cannot run : No such file or directory"),
        ([machine, "orphan"], 127, "cannot run orphan: its interpreter /no/such/interpreter is not in the image"),
        ([machine, "windows"], 127, "cannot run windows: its first line ends with CR LF: write the file with LF alone"),
        ([machine, "/bin/unmarked"], 126, "or a script without #! in its first line"),
    ):
        done = runner("exec", *words)
        assert (done.returncode, len(done.stderr.splitlines())) == (status, 1), (words, done.stderr)
        assert text in done.stderr
    assert runner("exec", machine, "/bin/probe").returncode == 0
    # SIGRTMIN+3 by the kernel's number: the program, which does not catch it, ends by it.
    assert runner("stop", machine).returncode == 0
    assert runner("wait", machine).stdout.split()[-1] == str(128 + 37)


def test_a_user_s_program_and_what_options_say(artifact: str, runner: Runner) -> None:
    options = [
        "--tmpfs",
        "/tmp:size=8m",
        "--tmpfs",
        "/data:mode=0711,exec",
        "--shm-size",
        "16m",
        "--ulimit",
        "nofile=77:99",
    ]
    options += ["--ulimit", "core=-1", "--add-host", "db:10.9.8.7", "--dns", "192.0.2.1", "--dns-search", "a.example"]
    said = in_terminal(runner, "boot", "-it", "--name", "other", "-u", "mia", "-w", "/root", *options, artifact)
    other = {"limit-nofile": "77:99", "limit-core": "unlimited:unlimited", "resolv.conf": "nameserver 192.0.2.1"}
    check(
        said, Context("mia", True, True, "/root", "other"), **other, **{"mount-/tmp": "1 tmpfs rw,nosuid,nodev,noexec"}
    )
    assert "directory-/data 0:0 0711" in said
    assert "directory-/tmp 0:0 1777" in said


def test_process_1(artifact: str, runner: Runner) -> None:
    """A PID namespace of its own, which exec joins; /proc is that namespace's."""
    assert runner("boot", "-d", "--name", "first", "--pid1", artifact, "--", "--wait").returncode == 0
    said = written(runner, "first")
    check(said, Context(host="first"), **{"process-1": "yes", "container": "rootdisk"})
    check(runner("exec", "first", "/bin/probe").stdout, Context(host="first"))
    assert runner("cp", "first:/proc/1/cmdline", "-").stdout.count("/bin/probe")


POWER_OFF, HALT, RESTART = "4321fedc", "cdef0123", "01234567"  # linux/reboot.h
ENDS = {
    "halt": (["--reboot", HALT], 0, "halted"),
    "reboot": (["--reboot", RESTART], 129, "rebooted"),
    "power off": (["--reboot", POWER_OFF], 0, "powered off"),
    "SIGUSR2": (["--signal", "12"], 0, "powered off"),
    "SIGTERM": (["--signal", "15"], 129, "rebooted"),
    "process 1, power off": (["--pid1", "--reboot", POWER_OFF], 0, "powered off"),
    "process 1, reboot": (["--pid1", "--reboot", RESTART], 129, "rebooted"),
}
OFTEN = ("halt", "SIGUSR2", "process 1, power off")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.nightly) for name in ENDS]
)
def test_a_program_ends_the_machine(artifact: str, runner: Runner, name: str) -> None:
    """The sandbox ends with a documented status and a plain line, whatever the machine does."""
    words, status, text = ENDS[name]
    options, words = (["--pid1"], words[1:]) if words[0] == "--pid1" else ([], words)
    done = runner("boot", *options, "--entrypoint", "/bin/probe", artifact, *words, timeout=120)
    assert (done.returncode, len(done.stderr.splitlines())) == (status, 1), done.stderr
    assert text in done.stderr
    assert done.stderr.startswith("runner: the sandbox was ")


LINKS = {
    "run": "/var/run",
    "tmp": "/private/tmp",
    "dev": "mnt/dev",
    "proc": "/mnt/proc",
    "sys": "../../mnt/sys",
    "etc": "/nix/etc",
}


def test_mount_points_that_are_links(place: Path, runner: Runner) -> None:
    """Found inside the root, whatever is missing is made; also the working directory, and a tmpfs."""

    def links(tar: tarfile.TarFile) -> None:
        for name, target in LINKS.items():
            add(tar, name, link=target)
        add(tar, "app", link="/srv/app")
        add(tar, "lead", link="/run/rootdisk")

    config = {
        "Entrypoint": ["/bin/probe", "/run/rootdisk", "/private/tmp"],
        "WorkingDir": "/app",
        "Volumes": {"/tmp/x": {}},
    }
    linked = build(place, image(place / "linked", config, links), "linked")
    done = runner("boot", "--name", "links", linked)
    moved = {"mount-/proc": "0 none", "mount-/sys": "0 none", "mount-/dev": "0 none", "mount-/dev/pts": "0 none"}
    moved |= {
        "mount-/dev/shm": "0 none",
        "mount-/dev/mqueue": "0 none",
        "mount-/sys/fs/cgroup": "0 none",
        "mount-/run": "0 none",
    }
    check(done.stdout, Context(workdir="/srv/app", host="links"), HOME="/", **moved)
    assert "directory-/run/rootdisk 0:0 0755" in done.stdout
    assert "directory-/private/tmp 0:0 1777" in done.stdout
    # By a link of the image, whatever its name: a volume is found in the same way.
    refused = runner("boot", "--tmpfs", "/lead/deeper", linked)
    assert refused.returncode == 125
    assert "the tmpfs at /lead/deeper leads to /run/rootdisk in this image" in refused.stderr
