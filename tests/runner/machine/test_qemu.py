"""QEMU's command line: what a guest gets to attack, read from the words and from the real program."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from rootdisk.oci.documents import Platform
from runner.machine import passt, qemu
from runner.machine.model import Forward, Machine, Share

BARE = Machine(
    Platform.parse("amd64"), "tcg", 384, 3, Path("/k"), Path("/i"), "console=ttyS0", "", Path("/d"), "qcow2", 1 << 30, Path("/b"),
    False, "none",
)  # fmt: skip
SHARED = BARE._replace(
    network="user",
    forwards=(Forward("tcp", "127.0.0.1", 1, 2),),
    shares=(Share("volume0", Path("/s"), "/v", read_only=False),),
    has_balloon=True,
)
MACHINES = {
    "bare": BARE,
    "with all": SHARED,
    "q35": BARE._replace(kind="q35"),
    "arm": BARE._replace(platform=Platform.parse("arm64")),
}


def command(machine: Machine) -> list[str]:
    shares = (17,) if machine.shares else ()
    return qemu.command("qemu", machine, qemu.Handles(10, 11, 12, 13, 14, 15, 16, shares, None))


def values(argv: list[str], option: str) -> list[str]:
    return [after for word, after in itertools.pairwise(argv) if word == option]


@pytest.mark.parametrize("case", MACHINES)
def test_a_guest_gets_few_devices(case: str) -> None:
    """None by default, one monitor whose other end is the keeper's, no display, and no process started by QEMU."""
    machine = MACHINES[case]
    argv = command(machine)
    assert {"-nodefaults", "-no-user-config"} <= set(argv)
    assert values(argv, "-display") == ["none"]
    assert values(argv, "-sandbox") == ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    assert values(argv, "-mon") == ["chardev=monitor,mode=control"]
    assert "socket,id=monitor,fd=12" in values(argv, "-chardev")
    wanted = ["virtio-serial-pci", "virtserialport", "virtio-rng-pci", "virtio-blk-pci"]
    wanted += ["vhost-user-fs-pci", "virtio-net-pci", "virtio-balloon-pci"] if case == "with all" else []
    assert sorted(device.partition(",")[0] for device in values(argv, "-device")) == sorted(wanted)
    assert values(argv, "-m") == ["384M"]
    assert values(argv, "-smp") == ["3"]
    (kind,) = values(argv, "-M")
    assert kind.endswith(",mem-merge=off")
    assert bool(values(argv, "-netdev")) == (machine.network == "user")


@pytest.mark.parametrize("case", MACHINES)
def test_qemu_opens_nothing_by_name(case: str) -> None:
    """A guest that has taken QEMU over finds no name of a file of the store; the base disk is for reading."""
    argv = command(MACHINES[case])
    places = [place for word in argv for place in re.findall(r"/[\w./-]+", word)]
    assert [place for place in places if not re.fullmatch(r"/(proc/self/fd/1[34]|dev/fdset/[12])", place)] == []
    disks = values(argv, "-blockdev")
    assert [("read-only=on" in disk) for disk in disks if "node-name=base" in disk] == [True]
    assert values(argv, "-add-fd") == ["fd=15,set=1", "fd=16,set=2"]


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")
@pytest.mark.parametrize("kind", qemu.KINDS)
def test_qemu_takes_these_words(kind: str, tmp_path: Path) -> None:
    """The real program, with an empty disk: it says nothing until it is ended, or that the kernel is no kernel."""
    for name in ("kernel", "initramfs"):
        (tmp_path / name).write_bytes(b"none")
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    sockets, fds = [], []
    for _ in range(3):
        ours, theirs = socket.socketpair()
        sockets += [ours, theirs]
        fds.append(theirs.fileno())
    files = [os.open(tmp_path / name, os.O_RDWR) for name in ("kernel", "initramfs", "disk")]
    machine = BARE._replace(kind=kind, disk_format="raw", base=None)
    handles = qemu.Handles(*fds, *files, None)  # type: ignore[arg-type, call-arg]
    argv = qemu.command("qemu-system-x86_64", machine, handles)
    done = subprocess.run(argv, pass_fds=[*fds, *files], capture_output=True, text=True, timeout=120)
    for sock in sockets:
        sock.close()
    for fd in files:
        os.close(fd)
    assert done.returncode == 1
    assert "kernel" in done.stderr
    assert "mem-merge" not in done.stderr


@pytest.mark.parametrize("forwards", [(), (Forward("tcp", "127.0.0.1", 8080, 80), Forward("udp", "0.0.0.0", 53, 53))])
def test_passt_leads_nowhere_on_this_machine(forwards: tuple[Forward, ...]) -> None:
    """No gateway that is the host's loopback, and no port but those asked for."""
    argv = passt.command(forwards, 9)
    assert {"--no-map-gw", "--ipv4-only"} <= set(argv)
    assert not [word for word in argv if word in ("-t", "-u", "auto", "all") or "host-loopback" in word]
    assert values(argv, "--tcp-ports") == [f"{f.address}/{f.host}:{f.guest}" for f in forwards if f.protocol == "tcp"]
    assert values(argv, "--udp-ports") == [f"{f.address}/{f.host}:{f.guest}" for f in forwards if f.protocol == "udp"]


LOOPBACK = (
    "00000000000000000000000000000001 80 "
    + "0" * 32
    + " 00 "
    + "0" * 32
    + " 00000000 00000002 00000000 80200001       lo\n"
)
REJECTED = "0" * 32 + " 00 " + "0" * 32 + " 00 " + "0" * 32 + " ffffffff 00000001 00000000 00200200       lo\n"
LINK_LOCAL = (
    "fe800000000000000000000000000000 40 "
    + "0" * 32
    + " 00 "
    + "0" * 32
    + " 00000100 00000001 00000000 00000001     eth0\n"
)
MULTICAST = (
    "ff000000000000000000000000000000 08 "
    + "0" * 32
    + " 00 "
    + "0" * 32
    + " 00000100 00000003 00000000 00000001     eth0\n"
)
DEFAULT = (
    "0" * 32 + " 00 " + "0" * 32 + " 00 20010db8000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n"
)


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ("", False),
        (LOOPBACK + REJECTED, False),
        (LOOPBACK + LINK_LOCAL + MULTICAST, False),
        (LOOPBACK + LINK_LOCAL + DEFAULT, True),
    ],
)
def test_passt_has_ipv6_if_the_host_has_a_route(tmp_path: Path, routes: str, expected: bool) -> None:
    """Tried with passt of 2025: without one it drops what a guest sends to an IPv6 name server, and QEMU's network is used."""
    (tmp_path / "routes").write_text(routes)
    assert passt.has_ipv6(tmp_path / "routes") is expected
    assert not passt.has_ipv6(tmp_path / "none")


@pytest.mark.parametrize("has_firmware", [True, False])
def test_microvm_has_its_own_firmware(has_firmware: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SeaBIOS the ACPI tables would lie where the initramfs is, so a QEMU without qboot gets another machine."""
    (tmp_path / "data").mkdir()
    if has_firmware:
        (tmp_path / "data" / qemu.FIRMWARE).touch()
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -M ] && echo "microvm  a machine" || printf "/none\\n{tmp_path}/data\\n"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert qemu.kind(Platform.parse("linux/amd64"), tmp_path / "known") == ("microvm" if has_firmware else "q35")
    assert values(command(BARE), "-bios") == [qemu.FIRMWARE]
    assert values(command(MACHINES["q35"]), "-bios") == []
