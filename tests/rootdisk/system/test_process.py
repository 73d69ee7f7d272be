"""Programs that we start, and what our own process has inherited: descriptors, signals, streams that do not block."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rootdisk.system import process
from tests.support.commands import ROOT
from tests.support.disks import needs_root
from tests.support.processes import CLOSED


def shell(script: str, *words: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    """A shell with `python` for this one, and the project to import."""
    return subprocess.run(
        ["bash", "-c", script, sys.executable, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def signals(status: str) -> dict[str, set[int]]:
    """Of /proc/PID/status: the sets of signals by their names there."""
    found = {}
    for name, mask in re.findall(r"^(Sig(?:Ign|Blk)):\t([0-9a-f]+)$", status, re.MULTILINE):
        found[name] = {number for number in range(1, 65) if int(mask, 16) >> (number - 1) & 1}
    return found


def test_only_one_place_starts_programs() -> None:
    """Whoever calls subprocess, fork or exec elsewhere leaves out what `process` takes care of."""
    starts = re.compile(
        r"subprocess\.(run|Popen|call|check_\w+|getoutput)\(|os\.(fork|exec|spawn|posix_spawn|system|popen)\w*\("
    )
    found = {
        str(path.relative_to(ROOT)): len(starts.findall(path.read_text("utf-8")))
        for folder in ("rootdisk", "runner", "imagetool")
        for path in (ROOT / folder).rglob("*.py")
        if starts.search(path.read_text("utf-8"))
    }
    # The keeper is a fork, the server of a disk is the fork of a fork, libkrun's process forks what reads its console, a
    # command may start itself again, the API has a process that starts sandboxes, and whether there are user namespaces is
    # tried in a fork.
    once = (
        "rootdisk/system/process.py",
        "rootdisk/system/stdio.py",
        "runner/sandbox/launch.py",
        "runner/machine/krun_process.py",
        "runner/machine/virtiofsd.py",
        "runner/sandbox/starter.py",
    )
    assert found == {
        **dict.fromkeys(once, 1),
        "rootdisk/system/process.py": 2,
        "runner/lazy/start.py": 2,
        "runner/template/make.py": 2,
    }


def test_a_program_gets_no_descriptor_of_ours() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        done = process.run(["ls", "/proc/self/fd"], stdin=b"")
        assert done.text.split() == ["0", "1", "2", "3"]  # the last is the listing's own
        assert process.run(["sh", "-c", "cat; echo err >&2; exit 7"], stdin=b"in") == (7, b"in", b"err\n")
        assert process.run(["cat"]) == (0, b"", b"")


def test_a_program_has_its_signals(tmp_path: Path) -> None:
    """One in a session of its own has every signal's default. One in ours ignores what our caller ignores, and no more."""
    script = "import rootdisk.system.stdio as s; s.settle(); from rootdisk.system import process as p; from pathlib import Path; import sys;"
    script += "started = p.start(['cat', '/proc/self/status']); started.wait(); Path(sys.argv[1]).write_bytes(started.stdout.read());"
    script += "print(p.run(['cat', '/proc/self/status']).text)"
    log = tmp_path / "log"
    done = shell('trap \'\' HUP USR1 CHLD; exec $0 -c "$1" "$2"', script, str(log))
    assert done.returncode == 0, done.stderr
    # glibc's own two are not ours to set.
    assert signals(log.read_text()) == {"SigIgn": set(), "SigBlk": set()}
    assert signals(done.stdout) == {"SigIgn": {signal.SIGHUP, signal.SIGUSR1}, "SigBlk": set()}


def test_a_caller_that_ignores_its_children() -> None:
    """With SIGCHLD ignored the kernel forgets how a child ended, and every failure would look like success."""
    script = "import rootdisk.system.stdio as s; s.settle(); from rootdisk.system import process as p; print(p.run(['false']).status)"
    assert shell("trap '' CHLD; exec $0 -c \"$1\"", script).stdout == "1\n"


def test_an_environment_that_is_hidden() -> None:
    """Nobody sees it in /proc any more. This process and its programs have it, the C library's getenv too."""
    script = "import ctypes, os, sys; from pathlib import Path; from rootdisk.system import process as p; see = Path('/proc/self/environ').read_bytes;"
    script += "before = see(); p.protect_secrets(); get = ctypes.CDLL(None).getenv; get.restype = ctypes.c_char_p;"
    script += (
        "print(b'T0KEN' in before, see().strip(bytes(1)), os.environ['S'], get(b'S'), p.run(['printenv', 'S']).out)"
    )
    assert shell('$0 -c "$1"', script, S="T0KEN").stdout == "True b'' T0KEN b'T0KEN' b'T0KEN\\n'\n"


def test_programs_inherit_no_secret_of_ours() -> None:
    """A credential helper or a key's command needs the variables of its user, but never our passphrase."""
    script = "from rootdisk.system.process import run; print(run(['printenv', 'ROOTDISK_SIGN_PASSPHRASE', 'AWS_PROFILE']).out)"
    assert shell('$0 -c "$1"', script, ROOTDISK_SIGN_PASSPHRASE="T0KEN", AWS_PROFILE="mine").stdout == "b'mine\\n'\n"


def test_a_program_that_does_not_answer() -> None:
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        process.run(["sh", "-c", "sleep 100 & wait"], timeout_s=0.2)


@pytest.mark.parametrize("script", ["yes", "yes >&2", "cat /dev/zero & cat >/dev/null"])
def test_a_program_that_writes_without_end(script: str) -> None:
    with pytest.raises(OSError, match="more than 1,000,000 bytes"):
        process.run(["sh", "-c", script], stdin=b"x" * 100_000, max_bytes=1_000_000)


def test_input_and_output_of_a_program() -> None:
    data = bytes(range(256)) * 4000
    both = process.run(["sh", "-c", "tee /dev/stderr"], stdin=data, timeout_s=60)
    assert (both.status, both.out, both.err) == (0, data, data)
    for script in ("exit 3", "exec <&-; sleep 0.1; exit 3", "head -c 1 >/dev/null; exit 3", "exec >&- 2>&-; exit 3"):
        assert process.run(["sh", "-c", script], stdin=data) == (3, b"", b"")
    assert process.run(["cat"], stdin=b"").out == b""
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        process.run(["sh", "-c", "exec >&- 2>&-; sleep 100"], stdin=data, timeout_s=0.2)


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_descriptors(closed: str, tmp_path: Path) -> None:
    """Whatever is opened afterwards is not 0, 1 or 2; what is written is dropped, and what is read is empty."""
    script = "import os, rootdisk.system.stdio as s, sys; s.settle(); fd = os.open(sys.argv[1], os.O_RDWR);"
    script += "print('out', flush=True); print('err', file=sys.stderr); os.write(fd, b'%d' % (fd > 2));"
    script += "os.write(fd, sys.stdin.read().encode()); os.write(fd, b'%d' % all(map(os.get_inheritable, range(3))))"
    file = tmp_path / "file"
    file.touch()
    done = shell(f'exec $0 -c "$1" "$2" {closed}', script, str(file))
    assert done.returncode == 0
    assert done.stdout == ("" if ">&-" in re.sub("2>&-", "", closed) else "out\n")
    assert done.stderr == ("" if "2>&-" in closed else "err\n")
    assert file.read_text() == "11"


def test_output_that_does_not_block_is_waited_for() -> None:
    """As a pipe is that another program has made non-blocking, and has filled. All at once, as each is looked at for 2 s."""
    with ThreadPoolExecutor() as pool:
        tries = [
            pool.submit(_writes_to_a_full_pipe, tool, arguments)
            for tool in ("runner", "imagetool")
            for arguments in (("completion", "bash"), ("none",))
        ]
        for one in tries:
            one.result()


def _writes_to_a_full_pipe(tool: str, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", tool, *arguments]
    whole = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(writer, bytes(4096))
    running = subprocess.Popen(command, stdout=writer, stderr=writer)
    os.close(writer)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(2)
    with open(reader, "rb") as file:
        assert file.read() == bytes(filled) + whole
    assert running.wait(30) == (0 if arguments[0] == "completion" else {"runner": 125, "imagetool": 2}[tool])


@pytest.mark.parametrize(("tool", "status"), [("runner", 125), ("imagetool", 1)])
@pytest.mark.parametrize("arguments", ["--help", "completion bash"])
def test_a_full_disk_under_standard_output_is_one_line(tool: str, status: int, arguments: str) -> None:
    done = shell(f"exec $0 -m {tool} {arguments} >/dev/full")
    assert done.returncode == status
    assert done.stderr == f"{tool}: cannot write to standard output: No space left on device\n"
    assert shell(f"exec $0 -m {tool} {arguments} >/dev/null 2>/dev/full").returncode == 0
    assert shell(f"exec $0 -m {tool} none 2>/dev/full").returncode in (125, 2)


def test_a_detached_process_keeps_nothing(tmp_path: Path) -> None:
    """Neither its caller's descriptors nor its directory; programs of a relative PATH are found where the caller was."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mine").symlink_to("/bin/true")
    script = "import os, rootdisk.system.stdio as s; s.settle(); from rootdisk.system import process as p; from pathlib import Path; import sys;"
    script += "own = os.open('own', os.O_RDWR | os.O_CREAT); lost = os.open('/dev/zero', os.O_RDONLY); "
    script += "p.detach({own}, Path(sys.argv[1]));"
    script += "print(sorted(os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')), os.getcwd(), p.find('mine'), file=sys.stderr)"
    log = tmp_path / "log"
    done = shell(
        f'cd {tmp_path}; exec 7>kept 9>kept $0 -c "$1" "$2" & wait', script, str(log), PATH=f"bin:{os.environ['PATH']}"
    )
    assert done.returncode == 0, done.stderr
    opened = ["/dev/null", "/dev/null", str(log), str(tmp_path / "own")]
    assert log.read_text() == f"{opened} / {tmp_path}/bin/mine\n"


def test_garbage_of_the_caller_closes_nothing_of_a_detached_process(tmp_path: Path) -> None:
    """A socket that nobody uses any more closes its number when it is found, and that may be another's: the server of a disk lost a machine."""
    script = (
        "import gc, os, socket, sys; from pathlib import Path; from rootdisk.system import process as p; gc.disable();"
    )
    script += (
        "held = [socket.socket() for _ in range(9)]; held.append(held); del held; p.detach((), Path(sys.argv[1]));"
    )
    script += "own = [os.open('/dev/zero', os.O_RDONLY) for _ in range(9)]; gc.collect(); [*map(os.fstat, own)];"
    script += "print('kept', file=sys.stderr)"
    log = tmp_path / "log"
    done = shell('exec $0 -c "$1" "$2" & wait', script, str(log))
    assert done.returncode == 0, done.stderr
    assert log.read_text() == "kept\n"


@needs_root
@pytest.mark.root
def test_users_of_machines_are_given_back(tmp_path: Path) -> None:
    """Two at once are never the same; a file for one is gone with it, or when somebody comes after it was killed."""
    code = "from rootdisk.system import process; from pathlib import Path; import sys\n"
    code += "with process.unprivileged(Path(sys.argv[1])) as user: print(user.uid, flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, str(tmp_path)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    running = [subprocess.Popen(argv, **options) for _ in range(3)]  # type: ignore[call-overload]
    numbers = [int(one.stdout.readline()) for one in running]
    assert len(set(numbers)) == 3
    assert {path.name for path in tmp_path.iterdir()} == {f"uid-{number}" for number in numbers}
    running[0].kill()
    running[0].wait()
    running[1].communicate(timeout=300)
    assert {path.name for path in tmp_path.iterdir()} == {f"uid-{numbers[0]}", f"uid-{numbers[2]}"}
    with process.unprivileged(tmp_path) as user:
        assert user is not None
        assert {path.name for path in tmp_path.iterdir()} == {f"uid-{user.uid}", f"uid-{numbers[2]}"}
    running[2].communicate(timeout=300)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("tool", "status"), [("runner", 125), ("imagetool", 1)])
def test_a_working_directory_that_is_gone(tool: str, status: int, tmp_path: Path) -> None:
    """What needs none works; what names a relative place says what is wrong."""
    place = tmp_path / "gone"
    script = f'mkdir {place} && cd {place} && rmdir {place} && exec $0 -m {tool} "$@"'
    place = tmp_path / "store"
    relative = {"runner": ["ps"], "imagetool": ["build", "oci:none:1", "oci:none:2"]}[tool]
    done = shell(script, *relative, ROOTDISK_STORE="store", ROOTDISK_CACHE="cache")
    assert (done.returncode, done.stderr) == (
        status,
        f"{tool}: the working directory was deleted: cd to one that exists\n",
    )
    assert shell(script, "--help").returncode == 0
    if tool == "runner":
        assert shell(script, "ps", ROOTDISK_STORE=str(place)).returncode == 0


@needs_root
@pytest.mark.parametrize("umask", ["0777", "0277"])
def test_a_umask_takes_nothing_from_its_owner(umask: str, tmp_path: Path) -> None:
    """Files and sockets that we make can be opened again by ourselves, and by nobody else."""
    tmp_path.chmod(0o777)
    script = "import os, socket, sys, rootdisk.system.stdio as s; s.settle(); os.chdir(sys.argv[1]); os.setuid(12345);"
    script += "open('file', 'wb').close(); open('file', 'r+b').close(); os.mkdir('in'); os.listdir('in');"
    script += "a = socket.socket(socket.AF_UNIX); a.bind('control'); a.listen();"
    script += "socket.socket(socket.AF_UNIX).connect('control')"
    done = shell(f'umask {umask}; exec $0 -c "$1" "$2"', script, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


@pytest.mark.parametrize("make", ["os.mkfifo(log)", "os.mkdir(log)", "os.symlink('other', log)"])
def test_a_detached_process_whose_log_cannot_be_one(make: str, tmp_path: Path) -> None:
    """It does not wait for a reader of a FIFO, and makes no file behind a link."""
    script = "import os, sys; from pathlib import Path; from rootdisk.system import process;"
    script += f"log = Path(sys.argv[1]); {make}; child = os.fork();"
    script += "child or (process.detach((), log), print('lost', file=sys.stderr, flush=True), os._exit(0));"
    script += "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    done = shell('exec $0 -c "$1" "$2"', script, str(tmp_path / "log"))
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_tests_in_the_background_start_programs_with_default_signals() -> None:
    """A shell ignores SIGINT for what it starts by `&`, and nohup SIGHUP: our own tests would wait for ever."""
    code = "import subprocess; from tests.support.processes import start_with_default_signals as start; {}"
    code += "subprocess.run(['grep', 'SigIgn', '/proc/self/status'])"
    for before, mask in (("", 0b111), ("start();", 0)):
        done = shell('trap "" HUP INT QUIT; exec $0 -c "$1"', code.format(before))
        assert int(done.stdout.split()[1], 16) & 0b111 == mask, done.stderr
