"""libkrun's calls, seen by a library that writes them down; and the real library where there is one."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.system import process
from runner.channel import messages
from runner.machine import backend, krun, passt, qemu
from runner.machine.krun_process import Library
from runner.machine.model import Machine, Share, Vm
from runner.machine.packages import how_to_install
from tests.support.disks import needs_root
from tests.support.krun import FakeKrun, needs_compiler
from tests.support.processes import until_it_waits

SLOT = "5" * 64
USER = process.User(70000, 70001, ())


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKrun:
    found = FakeKrun.build(tmp_path)
    monkeypatch.setenv("ROOTDISK_LIBKRUN", str(found.path))
    return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    disk = tmp_path / "disk.qcow2"
    disk.write_bytes(b"")
    disk.chmod(0o600)
    cmdline = f"console=ttyS0 quiet rootdisk.slot={SLOT} rootdisk.debug=1"
    return Machine(
        Platform.host(), "kvm", 512, 2, None, None, cmdline, SLOT, disk, "qcow2", 1 << 30, None, False, "none"
    )


def ended(vm: Vm) -> tuple[bytes, bytes]:
    """What the channel and the console said until the machine ended."""
    vm.channel.settimeout(20)
    vm.console.settimeout(20)
    said = b""
    while b"\7\0\0\0" not in said and (data := vm.channel.recv(4096)):
        said += data
    vm.channel.shutdown(1)
    console = b""
    while data := vm.console.recv(4096):
        console += data
    assert vm.wait(20) is not None
    vm.kill()
    return said, console


def written(vm: Vm) -> str:
    """What the machine's process has written to its standard output and errors."""
    return (vm.talk["machine.log"].read() or b"").decode()


@needs_compiler
def test_every_call_in_order(fake: FakeKrun, machine: Machine) -> None:
    vm = krun.start(machine)
    said, console = ended(vm)
    assert b"from the guest\n" in said
    assert console == b"the guest's kernel\n"
    assert fake.calls == [
        "krun_set_log_level 1",
        "krun_create_ctx",
        "krun_set_vm_config 5 2 512",
        "krun_add_disk3 5 root disk.qcow2 1 0 0 0",
        "krun_set_root_disk_remount 5 /dev/vda ext4 NULL",
        "krun_set_console_output 5",
        "krun_add_virtio_console_multiport 5",
        "krun_add_console_port_inout 5 3 rootdisk 1 1",
        "krun_disable_implicit_vsock 5",
        f"krun_set_exec 5 /.rootdisk/init:: KRUN_INIT_PID1=1 rootdisk.slot={SLOT} rootdisk.debug=1",
        "krun_start_enter 5",
    ]
    assert written(vm) == ""


@needs_compiler
def test_lanes_of_allow(fake: FakeKrun, machine: Machine) -> None:
    """Each is a port beside the channel's; there is no network card."""
    vm = krun.start(machine._replace(lanes=messages.LANES))
    assert len(vm.lanes) == messages.LANES
    ended(vm)
    ports = [call for call in fake.calls if call.startswith("krun_add_console_port_inout")]
    names = ["rootdisk", *(f"rootdisk.{number}" for number in range(1, messages.LANES + 1))]
    assert ports == [f"krun_add_console_port_inout 5 3 {name} 1 1" for name in names]
    assert not [call for call in fake.calls if "krun_add_net" in call]


@needs_compiler
@needs_root
@pytest.mark.root
def test_volumes_a_raw_disk_and_a_user(fake: FakeKrun, machine: Machine, tmp_path: Path) -> None:
    raw = machine._replace(disk_format="raw", durable=True)
    ended(krun.start(raw, USER))
    assert "krun_add_disk3 5 root disk.qcow2 0 0 0 2" in fake.calls
    assert fake.calls[-3:] == ["krun_setgid 5 70001", "krun_setuid 5 70000", "krun_start_enter 5"]
    shares = (Share("volume0", tmp_path, "/a", False), Share("volume1", tmp_path, "/b", True))
    ended(krun.start(raw._replace(shares=shares), USER))
    calls = fake.calls
    assert calls[-4:-2] == [f"krun_add_virtiofs 5 volume0 {tmp_path}", f"krun_add_virtiofs3 5 volume1 {tmp_path} 0 1"]
    assert "setuid" not in calls[-2]


@needs_compiler
def test_the_network_is_passt_s(
    fake: FakeKrun, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (programs / "passt").write_text(
        '#!/bin/sh\ncase $1 in --help) echo "  --map-host-loopback" ;; *) exec sleep 60 ;; esac\n'
    )
    (programs / "passt").chmod(0o755)
    ended(krun.start(machine._replace(network="user")))
    assert "krun_add_net_unixstream 5 NULL 1 52:56 19587 0" in fake.calls


FUNCTIONS = (
    *("krun_set_log_level", "krun_create_ctx", "krun_set_vm_config", "krun_add_disk3", "krun_set_root_disk_remount"),
    *("krun_set_console_output", "krun_add_virtio_console_multiport", "krun_add_console_port_inout"),
    *("krun_disable_implicit_vsock", "krun_set_exec", "krun_start_enter"),
)


@needs_compiler
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_failure_is_one_line(fake: FakeKrun, machine: Machine, function: str) -> None:
    fake.fails(function, errno.EINVAL)
    vm = krun.start(machine)
    assert vm.wait(20) == "exit status 1"
    vm.kill()
    lines = written(vm).splitlines()
    expected = f"libkrun: {function}: Invalid argument"
    assert lines == [expected + (": is /dev/kvm usable? runner doctor" if function == "krun_start_enter" else "")]
    assert fake.calls[-1].startswith(function)


@needs_compiler
def test_no_kernel_is_said(fake: FakeKrun, machine: Machine) -> None:
    fake.fails("krun_start_enter", errno.ENOENT)
    vm = krun.start(machine)
    assert vm.wait(20) == "exit status 1"
    vm.kill()
    assert "is libkrunfw installed?" in written(vm)


@needs_compiler
def test_an_old_library(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = FakeKrun.build(tmp_path, without="krun_add_disk3")
    monkeypatch.setenv("ROOTDISK_LIBKRUN", str(old.path))
    vm = krun.start(machine)
    assert vm.wait(20) == "exit status 1"
    vm.kill()
    said = written(vm)
    assert said == (
        "this libkrun has no krun_add_disk3: "
        "install libkrun 1.17 or newer (1.18 for read-only volumes), built with BLK=1 and NET=1\n"
    )


@needs_compiler
@needs_root
@pytest.mark.root
def test_it_ends_when_nobody_listens(fake: FakeKrun, machine: Machine) -> None:
    """Also as another user, when no signal comes at the runner's death."""
    fake.plays("sleep")
    vm = krun.start(machine, USER)
    assert vm.channel.recv(100)
    assert vm.console.recv(100)
    assert "\nUid:\t70000\t70000\t70000\t70000\n" in Path(f"/proc/{vm.process.pid}/status").read_text()
    vm.console.close()
    assert vm.wait(20) == "SIGKILL (was the host out of memory?)"
    vm.kill()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"platform": Platform("linux", "riscv64")}, "does not run on"),
        ({"accelerator": "tcg"}, "needs KVM"),
        ({"cpus": 256}, "libkrun supports at most 255"),
        ({"network": "user"}, "the network needs passt"),
    ],
)
def test_what_it_cannot_do(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], match: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RootdiskError, match=match):
        krun.start(machine._replace(**change))  # type: ignore[arg-type]


@needs_compiler
def test_which_back_end(fake: FakeKrun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Platform.host()
    assert backend.choose("krun", here) == "krun"
    assert backend.choose(None, here) == "qemu"
    monkeypatch.setenv("PATH", str(tmp_path))  # no QEMU
    assert backend.choose(None, here) == "krun"
    with pytest.raises(RootdiskError, match="is not installed"):
        backend.choose("qemu", here)
    monkeypatch.setenv("ROOTDISK_LIBKRUN", "libnone.so.1")
    with pytest.raises(RootdiskError, match=r"libnone\.so\.1 is not installed"):
        backend.choose("krun", here)


@pytest.mark.parametrize(
    ("release", "hint"),
    [
        ("ID=debian\n", "apt-get install qemu-system-arm"),
        ("NAME=Ubuntu\nID=ubuntu\nID_LIKE=debian\n", "apt-get install qemu-system-arm"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf install qemu-system-aarch64-core"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "zypper install qemu-arm"),
        ("ID=plan9\n", "debian: apt-get install qemu-system-arm; fedora: dnf install"),
        (None, "debian: apt-get install qemu-system-arm; fedora: dnf install"),
    ],
)
def test_what_to_install(tmp_path: Path, release: str | None, hint: str) -> None:
    path = tmp_path / "os-release"
    if release is not None:
        path.write_text(release)
    assert how_to_install(qemu.PACKAGES["arm64"], path).startswith(hint)


@pytest.mark.nightly
def test_the_real_library(machine: Machine) -> None:
    """That all we call is there, and that a machine begins, where KVM works."""
    try:
        library = ctypes.CDLL(krun.LIBRARY)
    except OSError:
        pytest.skip("libkrun is in none of Debian's suites, and not installed here")
    for function in (*FUNCTIONS, "krun_add_net_unixstream", "krun_setuid", "krun_setgid"):
        assert hasattr(library, function)
    context = Library(krun.LIBRARY).call("krun_create_ctx")
    assert Library(krun.LIBRARY).call("krun_set_vm_config", context, 1, 256) == 0
    vm = krun.start(machine)
    until_it_waits(vm.process)
    vm.kill()
    assert "krun_set" not in written(vm)


def test_ipv6_name_servers_need_a_route(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passt").write_text("#!/bin/sh\n# map-host-loopback\n")
    (tmp_path / "passt").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(passt, "has_ipv6", lambda: False)
    with pytest.raises(BadInput, match="name servers have IPv6 addresses only"):
        krun.check(machine._replace(network="user", ipv6=True))
