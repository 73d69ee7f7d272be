"""`--backend krun`, with a library that plays the guest; and a guest that starts as under libkrun, in QEMU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from imagetool.guest import initramfs
from rootdisk.oci.documents import Platform
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from runner.channel import messages
from runner.disk import slot
from runner.disk.clone import clone
from runner.machine import qemu
from runner.machine.model import Machine
from runner.machine.tsc import Counter
from runner.store.pull import pull
from runner.store.store import Store
from tests.support.commands import Runner
from tests.support.krun import FakeKrun, needs_compiler

pytestmark = needs_compiler

OPTIONS = ("-q", "--backend", "krun", "--accel", "kvm", "--network", "none")


def test_a_program_s_output_and_status(demo: str, runner: Runner, tmp_path: Path) -> None:
    fake = FakeKrun.build(tmp_path)
    done = runner("boot", *OPTIONS, "-m", "300m", demo, ROOTDISK_LIBKRUN=str(fake.path))
    assert (done.stdout, done.stderr, done.returncode) == ("from the guest\n", "", 7)
    assert "krun_set_vm_config 5 1 300" in fake.calls
    assert "krun_add_disk3 5 root disk.qcow2 1 0 0 0" in fake.calls
    assert not list((runner.store / "sandboxes").iterdir())


@pytest.mark.parametrize("guest", ["status", "panic"])
def test_a_kept_one(demo: str, runner: Runner, tmp_path: Path, guest: str) -> None:
    """It is started again by what it was booted by; a panic is read from its console."""
    fake = FakeKrun.build(tmp_path)
    options = (*OPTIONS, "--clone", "copy", "--keep", "--name", f"krun-{guest}", demo)
    runner("boot", *options, ROOTDISK_LIBKRUN=str(fake.path))
    assert "krun_add_disk3 5 root disk.raw 0 0 0 2" in fake.calls
    fake.plays(guest)
    done = runner("start", "--attach", f"krun-{guest}", ROOTDISK_LIBKRUN=str(fake.path))
    if guest == "status":
        assert (done.stdout, done.stderr, done.returncode) == ("from the guest\n", "", 7)
    else:
        assert done.returncode == 125
        assert "the guest's kernel panicked" in done.stderr
        assert "Kernel panic - not syncing: a test" in done.stderr
    assert runner("rm", f"krun-{guest}").returncode == 0


def test_a_failure_is_one_line(demo: str, runner: Runner, tmp_path: Path) -> None:
    fake = FakeKrun.build(tmp_path)
    fake.fails("krun_start_enter", 22)
    done = runner("boot", *OPTIONS, demo, ROOTDISK_LIBKRUN=str(fake.path))
    assert done.returncode == 125
    assert done.stderr.startswith(
        "runner: the sandbox exited before its program reported a status: libkrun: krun_start_enter: Invalid argument"
    )
    done = runner("boot", *OPTIONS, demo, ROOTDISK_LIBKRUN="libnone.so.1")
    assert done.stderr.startswith("runner: libnone.so.1 is not installed: install libkrun 1.17 or newer")


# What libkrun's own init does with a disk as root, in our words.
LIKE_LIBKRUN = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
static void mounts(void) {
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL);
    mkdir("/dev/pts", 0755);
    mount("devpts", "/dev/pts", "devpts", 0, NULL);
    mkdir("/dev/shm", 0755);
    mount("tmpfs", "/dev/shm", "tmpfs", 0, NULL);
    if (symlink("/proc/self/fd", "/dev/fd"))
        perror("/dev/fd");
}
int main(void) {
    char name[256], path[300];
    FILE *list = fopen("/modules/load", "r");
    while (list && fgets(name, sizeof name, list)) {
        name[strcspn(name, " \n")] = 0;
        snprintf(path, sizeof path, "/modules/%s", name);
        int fd = open(path, O_RDONLY);
        syscall(SYS_finit_module, fd, "", 0);
        close(fd);
    }
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/newroot", 0755);
    mounts();
    for (int i = 0; mount("/dev/vda", "/newroot", "ext4", 0, NULL) && i < 1000; i++)
        usleep(10000);
    if (chdir("/newroot") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot("."))
        perror("the disk");
    mounts();
    mount(NULL, "/", NULL, MS_REC | MS_SHARED, NULL);
    execl("/.rootdisk/init", "/.rootdisk/init", NULL);
    perror("/.rootdisk/init");
    return 1;
}
"""


def like_libkrun(of_artifact: Path, folder: Path) -> Path:
    """The artifact's initramfs, and in it the program above as /like."""
    (folder / "like.c").write_text(LIKE_LIBKRUN)
    subprocess.run(["gcc", "-static", "-s", "-Wno-unused-result", "-o", "like", "like.c"], cwd=folder, check=True)
    more = initramfs._entry(1, b"like", 0o100755, (folder / "like").read_bytes())
    path = folder / "initramfs"
    path.write_bytes(initramfs._padded(of_artifact.read_bytes()) + more + initramfs._entry(0, b"TRAILER!!!", 0, b""))
    return path


# What a program is asked, and what it finds: also of what libkrun's init has mounted with options of its own.
QUESTIONS = """
ulimit -n; cat /etc/resolv.conf; grep example /etc/hosts; cat /proc/1/comm
while read -r device place type flags rest; do
    case $place in /data|/dev/shm|/dev/pts) echo "$place $type $flags";; esac
done </proc/mounts
"""
RECORDS = [
    ("pid1", b"1"), ("tmpfs", b"/data\tsize=8m,exec"), ("shm-size", b"16777216"), ("ulimit", b"nofile\t77\t99"),
    ("resolv", b"nameserver 192.0.2.1\n"), ("host", b"10.9.8.7\tdb.example"),
]  # fmt: skip
ANSWERS = """77
nameserver 192.0.2.1
10.9.8.7\tdb.example
sh
/dev/pts devpts rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666
/dev/shm tmpfs rw,nosuid,nodev,relatime,size=16384k,inode64
/data tmpfs rw,nosuid,nodev,relatime,size=8192k,inode64
"""


def test_options_for_the_program_s_surroundings(demo: str, runner: Runner, tmp_path: Path) -> None:
    """The guest's init does what they say; the next test asks it. An init that does not know them is refused."""
    fake = FakeKrun.build(tmp_path)
    options = [
        *OPTIONS,
        "--pid1",
        "--tmpfs",
        "/data",
        "--shm-size",
        "16m",
        "--ulimit",
        "nofile=77",
        "--dns",
        "192.0.2.1",
    ]
    done = runner("boot", *options, "--add-host", "db:10.9.8.7", demo, ROOTDISK_LIBKRUN=str(fake.path))
    assert (done.stdout, done.stderr, done.returncode) == ("from the guest\n", "", 7)
    fake.plays("version-2")
    done = runner("boot", *options, "--add-host", "db:10.9.8.7", demo, ROOTDISK_LIBKRUN=str(fake.path))
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1), done.stderr
    for option in ("--pid1", "--tmpfs", "--shm-size", "--ulimit", "--dns", "--add-host"):
        assert option in done.stderr


@pytest.mark.vm
@pytest.mark.parametrize("case", ["plain", "read-only", "options"])
def test_the_init_goes_on_from_libkrun_s(demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """The same disk, slot and channel; what the command line says is in quotes; the root is mounted already, and shared."""
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))
    local = pull(Store.open(), parse_reference(demo), RegistryOptions(), Platform.host())
    assert local.kernel is not None
    assert local.initramfs is not None
    script = "cat /proc/1/cmdline; mount | grep -c ' on / '; echo $A; echo new > /sandbox/new; cat /sandbox/new; exit 7"
    script = QUESTIONS + "exit 7" if case == "options" else script
    records = [("entrypoint", b"/bin/sh"), ("cmd", b"-c"), ("cmd", script.encode()), ("env", b"A=of the slot")]
    records += {"plain": [], "read-only": [("read-only", b"1")], "options": RECORDS}[case]
    extent = local.config.slot()
    filled = slot.pack([*records, ("network", b"none")], extent.length)
    disk = clone(local.disk, local.config.disk_size, tmp_path, None, slot.clusters(extent, filled))
    words = [local.config.cmdline.replace("rdinit=/init", "rdinit=/like"), f'"rootdisk.slot={filled.digest}"']
    if khz := Counter().khz():
        words.append(f"tsc_early_khz={khz}")
    vm = qemu.start(
        Machine(
            Platform.host(), "tcg", 512, 1, local.kernel, like_libkrun(local.initramfs, tmp_path), " ".join(words), "",
            disk.path, disk.form, local.config.disk_size, local.disk, False, "none",
        ),
        tmp_path,
    )  # fmt: skip
    vm.channel.settimeout(100)
    decoder, said, status = messages.Decoder(), {messages.STDOUT: b"", messages.STDERR: b""}, None
    while status is None and (data := vm.channel.recv(1 << 16)):
        for kind, _, payload in decoder.feed(data):
            if kind in said:
                said[kind] += payload
            elif kind == messages.EXIT:
                status = messages.number(payload)
    vm.channel.sendall(messages.frame(messages.ACK))
    assert vm.wait(30) == ""
    vm.kill()
    output = ANSWERS.encode() if case == "options" else b"/.rootdisk/init\x001\nof the slot\nnew\n"
    assert said == {messages.STDOUT: output, messages.STDERR: b""}
    assert status == 7
