"""A sandbox's life seen by its user: detached, looked at, entered, copied into and out of, stopped, started again, removed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT, Runner
from tests.support.ports import free_port
from tests.support.processes import open_files, until_it_waits
from tests.support.sandboxes import LOOP, command, machines, rows
from tests.support.terminals import read_terminal
from tests.support.waiting import until

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def loop(demo: str, runner: Runner) -> Iterator[str]:
    """A sandbox in the background."""
    options = ("-d", "--name", "loop", "--label", "team=a", "--label", "b", "-e", "TOKEN=not-for-others")
    done = runner.boot(demo, LOOP, *options)
    assert (done.returncode, done.stdout) == (0, "loop\n"), done.stderr
    until(lambda: runner("logs", "loop").stdout and runner("logs", "loop").stderr)
    yield "loop"
    runner("rm", "--force", "loop")


def test_it_is_seen(loop: str, runner: Runner, demo: str) -> None:
    row = rows(runner)["loop"]
    assert row["running"]
    assert row["reference"] == demo
    assert row["labels"] == {"team": "a", "b": ""}
    document = json.loads(runner("inspect", "loop").stdout)
    assert document.pop("last_event")["event"] in ("ready", "exec-ended")
    assert document == row
    assert "loop" in runner("ps").stdout
    assert "did you mean loop?" in runner("inspect", "lop").stderr


def test_what_it_uses(loop: str, runner: Runner) -> None:
    (row,) = json.loads(runner("stats", "--json", "loop").stdout)
    assert row["name"] == "loop"
    own = (200 << 20) + (1 << 30)  # of QEMU and the keeper; without KVM it keeps up to 1 GiB of translated code
    assert 20 << 20 < row["memory_bytes"] < row["memory_limit_bytes"] + own
    assert row["disk_bytes"] > 0
    assert row["received_bytes"] is not None
    assert row["processes"] >= 2
    assert runner("stats", "--format", "{{.Name}} {{.PIDs}}").stdout.startswith("loop ")
    heads = re.split("  +", runner("stats").stdout.partition("\n")[0])
    assert heads == ["NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "DISK", "PIDS"]
    fields = "{{.Container}} {{.CPUPerc}} {{.MemUsage}} {{.NetIO}} {{.BlockIO}} {{.MemPerc}} {{.PIDs}}"  # docker's
    assert runner("stats", "--format", fields).returncode == 0
    assert "does not run" not in runner("stats", "loop").stderr
    assert runner("stats", "none").returncode == 125


def test_its_output_is_kept_apart(loop: str, runner: Runner) -> None:
    done = runner("logs", "loop")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert runner("logs", "--console", "loop").returncode == 0


def test_a_command_in_it(loop: str, runner: Runner) -> None:
    done = runner("exec", "-e", "A=1", "-w", "/etc", "loop", "sh", "-c", "pwd; echo $A $TOKEN; id -u; exit 9")
    assert (done.returncode, done.stdout) == (9, "/etc\n1 not-for-others\n10001\n")
    assert runner("exec", "-u", "0", "loop", "--", "id", "-u").stdout == "0\n"
    done = runner("exec", "loop", "/no/such/program")
    assert done.returncode == 127
    assert runner("exec", "nobody", "true").returncode == 125


def test_a_command_with_input(loop: str, runner: Runner) -> None:
    data = os.urandom(3 << 20)
    process = command(runner, "exec", "-i", "loop", "cat", stdin=subprocess.PIPE)
    out, err = process.communicate(data, timeout=300)
    assert (process.returncode, err) == (0, b"")
    assert out == data


def test_a_command_with_a_terminal(loop: str, runner: Runner) -> None:
    import pty

    ours, theirs = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    script = "stty size; tty; read -r line; echo got $line"
    process = command(runner, "exec", "-it", "loop", "sh", "-c", script, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"/dev/pts/" not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, b"word\r")
    seen += read_terminal(ours)
    assert process.wait(120) == 0
    assert b"33 77" in seen
    assert b"/dev/pts/" in seen
    assert b"got word" in seen


def test_a_blocked_reader_holds_up_nobody(loop: str, runner: Runner) -> None:
    blocked = command(runner, "exec", "loop", "yes")
    try:
        assert blocked.stdout is not None
        blocked.stdout.read(1000)
        until_it_waits(blocked)
        assert runner("exec", "loop", "echo", "quick", timeout=120).stdout == "quick\n"
    finally:
        blocked.kill()
        blocked.communicate()
    # Its client has gone, so it is told to hang up.
    until(lambda: runner("exec", "loop", "sh", "-c", "grep -sl ^yes /proc/[0-9]*/comm; true").stdout == "")


def test_many_commands_at_once(loop: str, runner: Runner) -> None:
    processes = [command(runner, "exec", "loop", "sh", "-c", f"echo {n}; exit {n}") for n in range(8)]
    for number, process in enumerate(processes):
        out, _ = process.communicate(timeout=300)
        assert (process.returncode, out) == (number, b"%d\n" % number)


def test_copies(loop: str, runner: Runner, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "file").write_bytes(os.urandom(300_000))
    (tree / "below/program").write_text("#!/bin/sh\necho ran\n")
    (tree / "below/program").chmod(0o755)
    (tree / "link").symlink_to("below/program")
    os.utime(tree / "file", (10**9, 10**9))
    assert runner("cp", str(tree), "loop:/sandbox").returncode == 0
    assert runner("exec", "loop", "/sandbox/tree/link").stdout == "ran\n"
    assert runner("exec", "loop", "stat", "-c", "%u %a %Y", "/sandbox/tree/file").stdout == "0 644 1000000000\n"
    back = tmp_path / "back"
    assert runner("cp", "loop:/sandbox/tree", str(back)).returncode == 0
    assert (back / "file").read_bytes() == (tree / "file").read_bytes()
    assert (back / "link").readlink() == Path("below/program")
    assert stat.S_IMODE((back / "below/program").stat().st_mode) == 0o755
    assert runner("cp", "loop:/sandbox/tree/file", str(back / "below")).returncode == 0
    assert (back / "below/file").exists()
    process = command(runner, "cp", "loop:/sandbox/tree", "-")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, b"")
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        names = sorted(archive.getnames())
    assert names == ["tree", "tree/below", "tree/below/program", "tree/file", "tree/link"]
    process = command(runner, "cp", "-", "loop:/tmp", stdin=subprocess.PIPE)
    assert process.communicate(out, timeout=300) == (b"", b"")
    assert runner("exec", "loop", "/tmp/tree/below/program").stdout == "ran\n"
    done = runner("cp", "loop:/no/such", str(tmp_path))
    assert (done.returncode, done.stderr) == (125, "runner: cp: /no/such: No such file or directory\n")
    assert "NAME:PATH" in runner("cp", str(tree), str(back)).stderr


def test_a_guest_that_copies_out_of_the_target(loop: str, runner: Runner, tmp_path: Path) -> None:
    """An init that sends what it likes: here by a program in its place."""
    fake = tmp_path / "init"
    entry = "import struct,sys;e=lambda k,n,t=b'',s=0:sys.stdout.buffer.write(struct.pack('<cxHHIqQ',k,len(n),len(t),0o4755,0,s)+n+t);"
    script = entry + "e(b'd',b'');e(b'l',b'out',b'/tmp');e(b'f',b'out/escaped',b'',1);sys.stdout.buffer.write(b'x')"
    fake.write_text(f"#!/usr/bin/python3\n{script}\n")
    fake.chmod(0o755)
    assert runner("cp", str(fake), "loop:/tmp/fake").returncode == 0
    mounted = runner("exec", "-u", "0", "loop", "mount", "--bind", "/tmp/fake", "/.rootdisk/init")
    assert mounted.returncode == 0, mounted.stderr
    try:
        done = runner("cp", "loop:/etc", str(tmp_path / "here"))
        assert done.returncode == 125
        assert not Path("/tmp/escaped").exists()
        assert (tmp_path / "here/out").is_symlink()
    finally:
        runner("exec", "-u", "0", "loop", "umount", "/.rootdisk/init")


def test_the_machine_has_few_rights(loop: str, runner: Runner) -> None:
    (pid,) = machines(runner, "loop")
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    if os.geteuid() == 0:
        uid = int(status["Uid"].split()[0])
        assert 61184 <= uid < 65520
        assert int(status["CapEff"], 16) == 0
    for process in (pid, rows(runner)["loop"]["pid"]):
        limits = Path(f"/proc/{process}/limits").read_text()
        assert "Max core file size        0 " in limits
    allowed = next(
        line.split()[3:5] for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "file size" in line[:13]
    )
    disk = json.loads(runner("inspect", "loop").stdout)["disk_size"]
    assert allowed == [str(disk + (1 << 30))] * 2
    flags = [line for line in Path(f"/proc/{pid}/smaps").read_text().splitlines() if line.startswith("VmFlags:")]
    assert flags
    assert not [line for line in flags if " mg" in line]  # KSM shares no page with another machine
    words = Path(f"/proc/{pid}/cmdline").read_bytes()
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"not-for-others" not in words + environment
    assert str(runner.store).encode() not in words


def test_no_secret_is_seen_outside(loop: str, runner: Runner) -> None:
    folder = runner.store / "sandboxes/loop"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    holding = {path.name for path in folder.iterdir() if path.is_file() and b"not-for-others" in path.read_bytes()}
    assert holding == {"records", "disk.qcow2"}
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in holding} == {0o600}
    keeper = rows(runner)["loop"]["pid"]
    assert b"not-for-others" not in Path(f"/proc/{keeper}/cmdline").read_bytes()
    assert not Path(f"/proc/{keeper}/environ").read_bytes().strip(b"\0")
    for words in (("ps", "-a"), ("ps", "--json"), ("inspect", "loop"), ("logs", "loop"), ("--debug", "ps")):
        done = runner(*words)
        assert "not-for-others" not in done.stdout + done.stderr
    assert "not-for-others" in runner("exec", "loop", "sh", "-c", "echo $TOKEN").stdout
    assert not [name for name in open_files(keeper).values() if name.endswith("/records")]


def test_signals_stop_start_and_rm(demo: str, runner: Runner) -> None:
    """The whole life of another one."""
    script = "trap 'echo told' USR1; trap 'echo bye; exit 3' TERM INT; echo up; while :; do sleep 0.1; done"
    assert runner.boot(demo, script, "-d", "--name", "life").returncode == 0
    waiting = command(runner, "wait", "life")
    following = command(runner, "logs", "-f", "life")
    assert "there is already a sandbox life" in runner.boot(demo, "true", "--name", "life").stderr
    assert runner("kill", "-s", "USR1", "life").stdout == "life\n"
    until(lambda: "told" in runner("logs", "life").stdout)
    assert runner("rm", "life").returncode == 125
    assert runner("exec", "-u", "0", "life", "sh", "-c", "echo kept > /kept; cat /etc/machine-id").returncode == 0
    assert runner("stop", "life").stdout == "life\n"
    assert waiting.communicate(timeout=300)[0] == b"3\n"
    assert following.communicate(timeout=300)[0] == b"up\ntold\nbye\n"
    assert rows(runner).get("life") is None
    assert rows(runner, "-a")["life"]["status"] == 3
    assert runner("wait", "life").stdout == "3\n"
    assert runner("start", "life").stdout == "life\n"
    assert runner("start", "life").returncode == 125
    assert runner("exec", "life", "cat", "/kept").stdout == "kept\n"
    assert runner("kill", "life").returncode == 0
    assert rows(runner, "-a")["life"]["status"] == 137
    attached = command(runner, "start", "--attach", "life")
    assert attached.stdout is not None
    assert attached.stdout.readline() == b"up\n"
    attached.send_signal(signal.SIGINT)
    assert attached.wait(120) == 3
    assert runner("rm", "life").stdout == "life\n"
    assert not (runner.store / "sandboxes/life").exists()


def test_a_program_that_does_not_stop(demo: str, runner: Runner) -> None:
    assert (
        runner.boot(demo, "trap '' TERM; while :; do sleep 0.1; done", "-d", "--rm", "--name", "deaf").returncode == 0
    )
    assert runner("stop", "-t", "1", "deaf").returncode == 0
    assert "deaf" not in rows(runner, "-a")


def test_a_detached_one_that_fails_says_why(demo: str, runner: Runner) -> None:
    done = runner("boot", "-d", "--user", "nobody-of-that-name", "--name", "bad", demo)
    assert done.returncode == 125
    assert "no user nobody-of-that-name" in done.stderr
    assert rows(runner, "-a")["bad"]["error"]
    assert runner("rm", "bad").returncode == 0


@pytest.mark.parametrize("victim", ["client", "keeper", "machine"])
def test_whoever_is_killed_nothing_stays(demo: str, runner: Runner, victim: str) -> None:
    name = f"killed-{victim}"
    client = command(runner, "boot", "--name", name, "--entrypoint", "/bin/sh", demo, "--", "-c", LOOP)
    assert client.stdout is not None
    assert client.stdout.readline() == b"out\n"
    (machine,) = machines(runner, name)
    pid = {"client": client.pid, "keeper": rows(runner)[name]["pid"], "machine": machine}[victim]
    os.kill(pid, signal.SIGKILL)
    _, err = client.communicate(timeout=300)
    if victim != "client":
        assert client.returncode == 125
        assert {"keeper": b"keeper was killed", "machine": b"SIGKILL"}[victim] in err
    until(lambda: not machines(runner, name))
    until(lambda: not (runner.store / "sandboxes" / name).exists())


def test_the_terminal_hangs_up(demo: str, runner: Runner) -> None:
    """The program is stopped as by SIGTERM, and what it wrote is kept."""
    import pty

    script = "trap 'echo stopped > /sandbox/how; exit 4' TERM; trap '' HUP; echo up; while :; do sleep 0.1; done"
    words = ["boot", "--name", "hung", "--keep", "--entrypoint", "/bin/sh", demo, "--", "-c", script]
    pid, terminal = pty.fork()
    if not pid:
        env = {**os.environ, "ROOTDISK_STORE": str(runner.store), "PYTHONPATH": str(ROOT)}
        os.execve(sys.executable, [sys.executable, "-m", "runner", *words], env)
    seen = b""
    while b"up" not in seen:
        seen += os.read(terminal, 100)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
    assert rows(runner, "-a")["hung"]["status"] == 4
    assert runner("rm", "hung").returncode == 0


def test_a_kept_one_that_was_cut_off_starts_again(demo: str, runner: Runner) -> None:
    """The guest wrote all the time when its power went: the slot is where it was, and the journal mends the rest."""
    script = "echo $RUN; i=0; while :; do i=$((i+1)); head -c 50000 /dev/urandom > /sandbox/f$((i%40)); sync; done"
    assert runner.boot(demo, script, "-d", "--name", "cut", "-e", "RUN=of-the-first").returncode == 0
    written = (
        "cd /sandbox; test -e mark || touch mark; test $(ls | wc -l) -gt 4 && find . -newer mark | grep -q f && rm mark"
    )
    for _ in range(2):
        until(lambda: runner("exec", "-u", "0", "cut", "sh", "-c", written).returncode == 0)
        os.kill(rows(runner)["cut"]["pid"], signal.SIGKILL)
        until(lambda: not machines(runner, "cut"))
        assert rows(runner, "-a")["cut"]["status"] is None
        assert "cut off" in runner("ps", "-a").stdout
        done = runner("start", "cut")
        assert done.returncode == 0, done.stderr
        assert runner("exec", "cut", "sh", "-c", "test $(ls /sandbox | wc -l) -gt 3").returncode == 0
    assert set(runner("logs", "cut").stdout.split()) == {"of-the-first"}
    assert runner("rm", "-f", "cut").returncode == 0


def test_ports(demo: str, runner: Runner) -> None:
    import socket

    port = free_port()
    server = (
        "import socket\ns = socket.create_server(('', 80))\n"
        "while True:\n c, _ = s.accept()\n c.sendall(open('/etc/hostname', 'rb').read())\n c.close()"
    )
    # Root may publish a low port, though its QEMU is another user.
    low = () if os.geteuid() else ("-p", "127.9.8.7:1023:80")
    options = ("-d", "--name", "web", "-p", f"{port}:80", *low, "-u", "0", "--entrypoint", "python3")
    assert runner("boot", *options, demo, "--", "-c", server).returncode == 0

    def answer(address: tuple[str, int] = ("127.0.0.1", port)) -> bytes:
        try:
            with socket.create_connection(address, timeout=5) as connection:
                return connection.recv(100)
        except OSError:
            return b""

    until(lambda: answer() == b"web\n")
    if low:
        assert answer(("127.9.8.7", 1023)) == b"web\n"
        (pid,) = machines(runner, "web")
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"CapEff:\t{1 << 10:016x}" in status  # CAP_NET_BIND_SERVICE, and nothing else of root's
    assert f"127.0.0.1:{port}->80/tcp" in runner("ps").stdout
    done = runner.boot(demo, "true", "-p", f"{port}:80")
    assert done.returncode == 125
    assert f"port {port} is in use" in done.stderr


def test_volumes(demo: str, runner: Runner, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("the virtiofsd of QEMU 7 runs as root only")
    shared, fixed = tmp_path / "shared", tmp_path / "fixed"
    shared.mkdir()
    fixed.mkdir()
    (shared / "in").write_text("from the host\n")
    (fixed / "in").write_text("not to be changed\n")
    script = (
        "cat /mnt/a/in /mnt/b/in; echo from the guest > /mnt/a/out;"
        "mount -o remount,rw /mnt/b; echo bad > /mnt/b/in && exit 1; rm /mnt/b/in && exit 2; exit 0"
    )
    volumes = ("-v", f"{shared}:/mnt/a", "-v", f"{fixed}:/mnt/b:ro")
    done = runner.boot(demo, script, "-u", "0", *volumes)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "from the host\nnot to be changed\n"
    assert (shared / "out").read_text() == "from the guest\n"
    assert (fixed / "in").read_text() == "not to be changed\n"


def test_a_volume_by_a_link_and_with_mounts(demo: str, runner: Runner, tmp_path: Path) -> None:
    """A link names the directory that it leads to; what is mounted in a read-only one is read-only too."""
    if os.geteuid():
        pytest.skip("only root may mount")
    fixed = tmp_path / "fixed"
    (fixed / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("fixed")
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", fixed / "below"]).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        (fixed / "below/in").write_text("not to be changed\n")
        script = "cat /mnt/below/in; echo bad > /mnt/x; echo bad > /mnt/below/in; rm -f /mnt/below/in; exit 0"
        done = runner.boot(demo, script, "-u", "0", "-v", f"{tmp_path}/link:/mnt:ro")
        assert done.returncode == 0, done.stderr
        assert done.stdout in ("not to be changed\n", "")  # not seen at all before Linux 5.12
        assert (fixed / "below/in").read_text() == "not to be changed\n"
        assert os.listdir(fixed) == ["below"]
    finally:
        subprocess.run(["umount", "-l", fixed / "below"], check=True)


RIGHTS = """
cd /v
for mode in 4755 2755 6755; do chmod $mode file && echo "chmod $mode"; done
mknod null c 1 3 && echo mknod
install -m 4755 /bin/true program && echo install
python3 -c "import os; os.open('made', os.O_CREAT | os.O_RDWR, 0o4755)" && echo made
echo more >> of-the-host
mkfifo fifo && mkdir -p below && chmod 1777 below && chmod 755 file && echo usual
"""


@pytest.mark.parametrize("mode", ["", ":dev,suid"])
def test_rights_on_the_host(demo: str, runner: Runner, tmp_path: Path, mode: str) -> None:
    """The guest's root leaves neither programs that run as root on the host nor devices, unless that is asked for."""
    if os.geteuid():
        pytest.skip("the virtiofsd of QEMU 7 runs as root only")
    shared = tmp_path / "a, b"
    shared.mkdir()
    (shared / "file").touch()
    (shared / "of-the-host").write_bytes(b"#!")
    (shared / "of-the-host").chmod(0o4755)
    done = runner.boot(demo, RIGHTS, "-u", "0", "-v", f"{shared}:/v{mode}")
    modes = [path.stat().st_mode for path in shared.iterdir()]
    assert len(modes) >= 5
    if mode:
        assert done.stdout.split() == [
            "chmod",
            "4755",
            "chmod",
            "2755",
            "chmod",
            "6755",
            "mknod",
            "install",
            "made",
            "usual",
        ], done.stderr
        assert any(stat.S_ISCHR(one) for one in modes)
        assert sum(bool(one & 0o6000) for one in modes) == 3
    else:
        assert done.stdout == "usual\n", done.stderr
        assert "Operation not permitted" in done.stderr
        assert not [oct(one) for one in modes if one & 0o6000 or stat.S_ISCHR(one)]


@pytest.mark.nightly
@pytest.mark.skipif(os.geteuid() != 0, reason="the virtiofsd of QEMU 7 runs as root only")
def test_a_volume_of_another_kind_than_what_it_covers(demo: str, runner: Runner, tmp_path: Path) -> None:
    """A directory onto a file of the image, and the reverse, end with one line, as in docker."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for options, text in (
        (
            ("-v", f"{tmp_path}/folder:/etc/passwd"),
            "the volume at /etc/passwd is a directory, but the image has a file there",
        ),
        (("-v", f"{tmp_path}/file:/etc"), "the volume at /etc is a file, but the image has a directory there"),
        (("--tmpfs", "/etc/passwd"), "the tmpfs at /etc/passwd is a directory, but the image has a file there"),
    ):
        done = runner.boot(demo, "true", *options)
        assert (done.returncode, done.stderr) == (125, f"runner: {text}\n")


def test_a_volume_that_is_gone(demo: str, runner: Runner, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("the virtiofsd of QEMU 7 runs as root only")
    shared = tmp_path / "shared"
    shared.mkdir()
    assert runner.boot(demo, "exit 0", "--keep", "--name", "gone", "-v", f"{shared}:/v").returncode == 0
    shared.rmdir()
    done = runner("start", "gone")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert f"{shared} does not exist" in done.stderr
    shared.mkdir()
    assert runner("start", "gone").returncode == 0
    runner("wait", "gone")
    assert runner("rm", "gone").returncode == 0


@pytest.mark.parametrize("detached", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_volume_s_server_is_killed(demo: str, runner: Runner, tmp_path: Path, detached: bool) -> None:
    """The program is stopped, as what waits for the volume would wait for ever, and it is said why."""
    if os.geteuid():
        pytest.skip("the virtiofsd of QEMU 7 runs as root only")
    (tmp_path / "file").write_text("in\n")
    script = "cat /v/file; trap 'echo bye; exit 5' TERM; while :; do sleep 0.1; done"
    options = [
        "--name",
        "served",
        "-u",
        "0",
        "-v",
        f"{tmp_path}:/v",
        "--entrypoint",
        "/bin/sh",
        demo,
        "--",
        "-c",
        script,
    ]
    client = command(runner, "boot", *(["-d"] if detached else []), *options)
    assert client.stdout is not None
    assert client.stderr is not None
    assert client.stdout.readline() == (b"served\n" if detached else b"in\n")
    until(lambda: not detached or runner("logs", "served").stdout == "in\n")
    inside = command(runner, "exec", "served", "sh", "-c", "echo up; sleep 1000")
    assert inside.stdout is not None
    assert inside.stdout.readline() == b"up\n"
    (server,) = (pid for pid in children(rows(runner)["served"]["pid"]) if b"virtiofsd" in cmdline(pid))
    os.kill(server, signal.SIGKILL)
    said = b"runner: the volume /v is lost: its server ended: SIGKILL (was the host out of memory?)\n"
    _, err = inside.communicate(timeout=60)
    assert err.startswith(said)
    if detached:
        until(lambda: not rows(runner, "-a")["served"]["running"])
        assert runner("logs", "served").stdout == "in\nbye\n"
        assert f"runner: {rows(runner, '-a')['served']['error']}\n".encode() == said
        assert runner("rm", "served").returncode == 0
    else:
        out, err = client.communicate(timeout=60)
        assert (client.returncode, out, err) == (125, b"bye\n", said)
        until(lambda: "served" not in rows(runner, "-a"))


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_volume_s_server_that_does_not_start(demo: str, runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "virtiofsd").write_text("#!/bin/sh\necho --shared-dir\necho 'not today' >&2\nexit 3\n")
    (tmp_path / "virtiofsd").chmod(0o755)
    done = runner.boot(demo, "true", "-v", f"{tmp_path}:/v", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 125
    assert done.stderr == "runner: the volume /v is lost: its server ended: exit status 3: not today\n"


def test_read_only(demo: str, runner: Runner) -> None:
    done = runner.boot(demo, "echo a > /sandbox/a && cat /sandbox/a; grep -c overlay /proc/mounts", "--read-only")
    assert (done.returncode, done.stdout) == (0, "a\n1\n"), done.stderr


@pytest.mark.nightly
def test_eight_at_once(demo: str, runner: Runner) -> None:
    """Eight sandboxes of one base by eight processes at once."""
    results: list[subprocess.CompletedProcess[str]] = []

    def one(number: int) -> None:
        results.append(runner.boot(demo, f"echo {number}", "-m", "128m", timeout=240))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done.stdout for done in results) == [f"{number}\n" for number in range(8)]
    assert not [name for name in rows(runner, "-a") if name.startswith("sandbox-")]
