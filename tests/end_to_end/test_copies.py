"""`runner cp` with booted guests: honest ones whose files are odd, and one whose init sends what it likes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Runner
from tests.support.sandboxes import command
from tests.support.waiting import until

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def box(demo: str, runner: Runner) -> Iterator[str]:
    done = runner.boot(demo, "while :; do sleep 1; done", "-d", "--name", "box", "-u", "0")
    assert done.returncode == 0, done.stderr
    yield "box"
    runner("rm", "--force", "box")


def sh(runner: Runner, script: str) -> str:
    done = runner("exec", "-u", "0", "box", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_files_of_proc_and_sys(box: str, runner: Runner, tmp_path: Path) -> None:
    for number, path in enumerate(("/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/1/status")):
        copy = tmp_path / str(number)
        assert runner("cp", f"box:{path}", str(copy)).returncode == 0
        assert copy.read_text().split()[:2] == sh(runner, f"cat {path}").split()[:2]
    done = runner("cp", "box:/proc/self/mem", str(tmp_path / "mem"))
    assert done.returncode == 125
    assert done.stderr.startswith("runner: cp: /proc/self/mem: I")
    assert not (tmp_path / "mem").exists()


def test_holes_stay_holes(box: str, runner: Runner, tmp_path: Path) -> None:
    sh(
        runner,
        "mkdir -p /sandbox/holes; cd /sandbox/holes; truncate -s 5G f; printf end | dd of=f bs=1 seek=4G conv=notrunc",
    )
    assert runner("cp", "box:/sandbox/holes", str(tmp_path), timeout=300).returncode == 0
    copy = tmp_path / "holes/f"
    assert copy.stat().st_size == 5 << 30
    assert copy.stat().st_blocks * 512 < 1 << 20
    with copy.open("rb") as file:
        assert os.pread(file.fileno(), 5, 4 << 30) == b"end\0\0"
    assert runner("cp", str(copy), "box:/sandbox/holes/back", timeout=300).returncode == 0
    assert sh(runner, "cd /sandbox/holes; stat -c %s back; du -k back | cut -f 1").split()[0] == str(5 << 30)
    assert int(sh(runner, "du -k /sandbox/holes/back | cut -f 1")) < 1024
    process = command(runner, "cp", "box:/sandbox/holes/f", "-")
    out, _ = process.communicate(timeout=300)
    assert len(out) < 1 << 20
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert archive.getmember("f").size == 5 << 30


def test_a_log_that_grows(box: str, runner: Runner, tmp_path: Path) -> None:
    loop = "while test -e /tmp/going; do i=$((i+1)); echo line $i >> /tmp/log; done"
    sh(runner, f"touch /tmp/going; i=0; ({loop}) >/dev/null 2>&1 &")
    try:
        until(lambda: int(sh(runner, "wc -l < /tmp/log 2>/dev/null || echo 0")) > 100)
        before = int(sh(runner, "wc -l < /tmp/log"))
        done = runner("cp", "box:/tmp/log", str(tmp_path / "log"))
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "log").read_text().splitlines()
        assert len(lines) >= before
        assert lines == [f"line {n + 1}" for n in range(len(lines))]
    finally:
        sh(runner, "rm -f /tmp/going")


def test_what_is_no_file(box: str, runner: Runner, tmp_path: Path) -> None:
    sh(
        runner,
        "rm -rf /sandbox/odd; mkdir -p /sandbox/odd/below; cd /sandbox/odd; mkfifo fifo; mknod null c 1 3; echo x > below/file",
    )
    sh(runner, "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/sandbox/odd/socket\")'")
    done = runner("cp", "box:/sandbox/odd", str(tmp_path))
    assert done.returncode == 125
    assert "/sandbox/odd/socket: is a socket, left out" in done.stderr
    assert f"{tmp_path}/odd/null: is a device in the sandbox" in done.stderr
    assert sorted(os.listdir(tmp_path / "odd")) == ["below", "fifo"]
    process = command(runner, "cp", "box:/sandbox/odd", "-")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        assert archive.getmember("odd/null").ischr()
        assert archive.getmember("odd/fifo").isfifo()
    assert runner("exec", "box", "mkdir", "-p", "/tmp/in").returncode == 0
    process = command(runner, "cp", "-", "box:/tmp/in", stdin=subprocess.PIPE)
    assert process.communicate(out, timeout=300) == (b"", b"")
    assert sh(runner, "cd /tmp/in/odd; stat -c '%n %F %t %T' *").splitlines() == [
        "below directory 0 0",
        "fifo fifo 0 0",
        "null character special file 1 3",
    ]


def test_links_on_the_way_are_followed(box: str, runner: Runner, tmp_path: Path) -> None:
    sh(
        runner,
        "mkdir -p /sandbox/real; echo x > /sandbox/real/f; ln -sfn real /sandbox/way; ln -sfn ../../../etc /sandbox/real/up",
    )
    assert runner("cp", "box:sandbox/way/f", str(tmp_path / "f")).returncode == 0
    assert (tmp_path / "f").read_text() == "x\n"
    assert runner("cp", "box:/sandbox/way/.", str(tmp_path / "all")).returncode == 0
    assert sorted(os.listdir(tmp_path / "all")) == ["f", "up"]
    assert runner("cp", "box:/sandbox/way", str(tmp_path)).returncode == 0
    assert (tmp_path / "way").readlink() == Path("real")
    done = runner("cp", "box:/sandbox/way", str(tmp_path / "new"))
    assert (done.returncode, (tmp_path / "new").is_symlink()) == (125, False)
    assert runner("cp", "-L", "box:/sandbox/way", str(tmp_path / "new")).returncode == 0
    assert (tmp_path / "new/f").read_text() == "x\n"
    assert runner("cp", str(tmp_path / "f"), "box:/sandbox/way/../../../../in").returncode == 0
    assert sh(runner, "cat /in") == "x\n"


HEAD = """#!/usr/bin/python3
import os, struct, sys
def e(kind, name, target=b"", data=b"", size=None):
    size = len(data) if size is None else size
    os.write(1, struct.pack("<cxHHIqQ", kind, len(name), len(target), 0o4755, 0, size) + name + target)
    if kind == b"f" and VERSION > 1:
        os.write(1, struct.pack("<I", 1) + struct.pack("<QQ", 0, size))
    os.write(1, data)
    if kind == b"f" and VERSION > 1:
        os.write(1, struct.pack("<I", 0))
"""


@pytest.fixture
def replaced(box: str, runner: Runner, tmp_path: Path) -> Iterator[object]:
    """Puts a program in the place of the guest's init."""

    def put(text: str) -> None:
        (tmp_path / "init").write_text(text)
        (tmp_path / "init").chmod(0o755)
        assert runner("cp", str(tmp_path / "init"), "box:/tmp/fake").returncode == 0
        sh(runner, "mount --bind /tmp/fake /.rootdisk/init")

    yield put
    sh(runner, "umount /.rootdisk/init")


@pytest.mark.parametrize("version", [1, 2])
def test_an_init_that_sends_what_it_likes(replaced: object, runner: Runner, tmp_path: Path, version: int) -> None:
    outside, here = tmp_path / "outside", tmp_path / "here"
    outside.mkdir()
    hello = 'os.write(1, b"RDCOPY2\\n")' if version == 2 else ""
    link = os.fsencode(outside)
    replaced(  # type: ignore[operator]
        HEAD.replace("VERSION", str(version))
        + f'{hello}\ne(b"l", b"", {link!r}); e(b"f", b"escaped", data=b"x"); e(b"d", b""); e(b"f", b"escaped", data=b"x")\n'
    )
    for target in (here, tmp_path, here):
        for source in ("box:/etc", "box:/etc/.", "box:/etc/passwd"):
            done = runner("cp", source, str(target))
            assert done.returncode == 125, done.stderr
            assert done.stderr.count("\n") == 1
            assert os.listdir(outside) == []
    process = command(runner, "cp", "box:/etc", "-")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 125
    with tarfile.open(fileobj=io.BytesIO(out), mode="r|") as archive:
        assert [member.name for member in archive] == ["etc"]


@pytest.mark.parametrize("stream", ["1", "2"])
def test_an_init_that_floods_and_reads_nothing(replaced: object, runner: Runner, tmp_path: Path, stream: str) -> None:
    """The client's memory is bounded, and a signal ends it."""
    # It answers as an init does, then writes to `stream` for ever.
    replaced(  # type: ignore[operator]
        f"#!/usr/bin/python3\nimport os\nos.write(1, b'RDCOPY2\\n')\nwhile True: os.write({stream}, bytes(65536))\n"
    )
    with (tmp_path / "big").open("wb") as file:
        file.truncate(1)
    (tmp_path / "big").write_bytes(os.urandom(16 << 20))
    client = command(runner, "cp", str(tmp_path / "big"), "box:/tmp/big")
    status = Path(f"/proc/{client.pid}/status")
    peaks = []
    for _ in range(6):
        try:
            client.wait(1)
        except subprocess.TimeoutExpired:
            peaks += [int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    client.send_signal(signal.SIGTERM)
    _, err = client.communicate(timeout=300)
    assert client.returncode in (125, 128 + signal.SIGTERM), err
    assert all(peak < 100_000 for peak in peaks), peaks
    assert runner("exec", "box", "true").returncode == 0, "others are not disturbed"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_copy_that_is_ended_leaves_nothing(box: str, runner: Runner, tmp_path: Path, number: int) -> None:
    sh(runner, "head -c 40m /dev/zero > /tmp/large")
    client = command(runner, "cp", "box:/tmp/large", str(tmp_path))
    until(lambda: os.listdir(tmp_path) or client.poll() is not None)
    client.send_signal(number)
    client.communicate(timeout=300)
    assert client.returncode in (128 + number, 0)
    assert client.returncode == 0 or os.listdir(tmp_path) == []
