"""Run a Machine with QEMU.

QEMU runs with no default devices, no display and with seccomp. Its only monitor is for the keeper, which learns there that
the host's disk is full. Every disk format is explicit. QEMU opens nothing by name: it inherits descriptors of kernel, disks
and sockets, so it can run as a user without access to the store.

The machine type is `microvm` with PCI on x86, or `q35` if QEMU has no microvm or not its firmware; on ARM it is `virt`.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from rootdisk.artifact.verity import SERIAL
from rootdisk.durable import open_file
from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Platform
from rootdisk.system import process
from runner.machine import ports, qmp
from runner.machine.model import Forward, Helper, Machine, Vm

PROGRAMS = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}
KINDS = ("microvm", "q35")
RECONNECT_S = 60  # how long reads wait for the server of a disk if none can be started; as long as one lets them wait
VERSION = 1  # of the file with the machine type
_GEOMETRY = "cyls=16383,heads=16,secs=63"  # what QEMU guesses from the first sector, for which a lazy start would wait
# Firmware of microvm. QEMU's own choice, SeaBIOS, puts the ACPI tables at the end of memory, where QEMU puts the initramfs: by the
# length of its last page one overwrites the other, and the guest hangs or finds no disk.
FIRMWARE = "qboot.rom"
PACKAGES = {  # by the systems of packages.py
    "amd64": {
        "debian": "qemu-system-x86",
        "fedora": "qemu-system-x86-core",
        "arch": "qemu-system-x86",
        "alpine": "qemu-system-x86_64",
        "suse": "qemu-x86",
    },
    "arm64": {
        "debian": "qemu-system-arm",
        "fedora": "qemu-system-aarch64-core",
        "arch": "qemu-system-aarch64",
        "alpine": "qemu-system-aarch64",
        "suse": "qemu-arm",
    },
}


class Memory(NamedTuple):
    """The RAM of a machine as a file: to save the machine, or to restore it.

    To be saved, a machine has neither a disk nor a network behind its devices, and its RAM is the file. A restored one reads
    the file, and keeps to itself what it changes.
    """

    fd: int
    state: int | None = None  # of a restored machine: a file or pipe with the state of its devices
    is_filled: bool = False  # by `state`, which has all of the RAM too, and saved again: it never runs

    @property
    def is_saved(self) -> bool:
        """Return whether the machine is started to be saved."""
        return self.state is None or self.is_filled


class Handles(NamedTuple):
    """The descriptors that QEMU inherits."""

    channel: int
    console: int
    monitor: int
    kernel: int
    initramfs: int
    disk: int | None
    base: int | None
    shares: tuple[int, ...] = ()  # connected to the server of each volume
    network: int | None = None  # connected to passt
    verity: int | None = None
    memory: Memory | None = None
    lanes: tuple[int, ...] = ()  # for streams

    @property
    def all(self) -> list[int]:
        """The descriptors that QEMU inherits."""
        named = (
            self.channel,
            self.console,
            self.monitor,
            self.kernel,
            self.initramfs,
            self.disk,
            self.base,
            self.network,
            self.verity,
            *((self.memory.fd, self.memory.state) if self.memory else ()),
        )
        return [fd for fd in (*named, *self.shares, *self.lanes) if fd is not None]

    @property
    def is_saved(self) -> bool:
        """Return whether the machine is started to be saved."""
        return self.memory is not None and self.memory.is_saved


def program(platform: Platform) -> str:
    """Return the path of QEMU for `platform`.

    Raises:
        RootdiskError: It is not installed; the hint says how to install it.
    """
    name = PROGRAMS.get(platform.architecture)
    if name is None:
        raise RootdiskError(f"no QEMU machine for {platform}")
    path = process.find(name)
    if path is None:
        from runner.machine.packages import how_to_install

        raise RootdiskError(f"{name} is not installed", how_to_install(PACKAGES[platform.architecture]))
    return path


def kind(platform: Platform, known: Path) -> str:
    """Return the machine type of the installed QEMU for `platform`. The file `known` caches the answer of this QEMU."""
    if platform.architecture == "arm64":
        return "virt"
    path = program(platform)
    version = f"{path} {os.stat(path).st_mtime_ns} {FIRMWARE}"  # older runners did not ask for the firmware
    from rootdisk.system.versions import read_versioned, write_versioned

    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        value = read_versioned(known, VERSION)
        if value["qemu"] == version:
            return KINDS[KINDS.index(value["kind"])]
    machines = process.run([path, "-M", "help"], timeout_s=process.PROBE_S).text
    has_microvm = re.search(r"^microvm\b", machines, re.MULTILINE) and _has_firmware(path)
    machine_type = "microvm" if has_microvm else "q35"
    with contextlib.suppress(OSError):  # QEMU is asked again next time
        write_versioned(known, {"qemu": version, "kind": machine_type}, VERSION)
    return machine_type


def _has_firmware(path: str) -> bool:
    """Return whether QEMU finds the firmware of microvm in one of its directories."""
    places = process.run([path, "-L", "help"], timeout_s=process.PROBE_S).text
    return any(Path(place, FIRMWARE).is_file() for place in places.splitlines())


@contextlib.contextmanager
def asked_early(platform: Platform, known: Path) -> Iterator[None]:
    """On a new store, ask QEMU for its machine types while the block fetches an artifact: the answer takes 0.15 s."""
    if known.exists():
        yield
        return
    from rootdisk.system.threads import running  # no other boot needs them

    def ask() -> None:
        """Ask. An error is reported when the answer is needed."""
        with contextlib.suppress(RootdiskError, OSError):
            kind(platform, known)

    with running([ask]):  # it has ended when the keeper is forked
        yield


def start(machine: Machine, folder: Path, user: process.User | None = None, memory: Memory | None = None) -> Vm:
    """Start QEMU and the servers of volumes and network. Sockets are created in `folder`. QEMU runs as `user`.

    With `memory` the machine is one to save, or a restored one that waits for the order to read its state.

    Raises:
        BadInput: The artifact has no kernel.
        RootdiskError: Something is not installed. Nothing is running then.
    """
    qemu = program(machine.platform)
    if machine.kernel is None or machine.initramfs is None:
        raise BadInput("the artifact has no kernel", "build it with a kernel in images.toml")
    with ExitStack() as ours, ExitStack() as helpers:

        def inherit(path: Path, flags: int) -> int:
            """Open a file for QEMU to inherit; this process closes it at the end."""
            fd = open_file(path, flags)
            ours.callback(os.close, fd)
            return fd

        channel, channel_fd = _pair(ours)
        console, console_fd = _pair(ours)
        monitor, monitor_fd = _pair(ours)
        lanes = [_pair(ours) for _ in range(machine.lanes)]
        for sock in (channel, console, monitor, *(lane for lane, _ in lanes)):
            helpers.enter_context(sock)
        is_saved = memory is not None and memory.is_saved
        served = _start_helpers(
            machine, folder, user, ours, helpers, has_network=machine.network == "user" and not is_saved
        )
        handles = Handles(
            channel_fd,
            console_fd,
            monitor_fd,
            inherit(machine.kernel, os.O_RDONLY),
            inherit(machine.initramfs, os.O_RDONLY),
            None if is_saved else inherit(machine.disk, os.O_RDWR),
            _base(machine, ours),
            served.shares,
            served.network,
            inherit(machine.verity, os.O_RDONLY) if machine.verity and not is_saved else None,
            memory,
            tuple(fd for _, fd in lanes),
        )
        running = process.start(
            command(qemu, machine._replace(forwards=served.forwards), handles),
            fds=handles.all,
            user=user,
            file_max_bytes=machine.file_max_bytes,
            may_bind=served.network is None and ports.are_low(served.forwards),
            cgroup=machine.cgroup,
        )
        helpers.pop_all()
        return Vm(running, channel, console, served.processes, monitor, tuple(lane for lane, _ in lanes))


class _Helpers(NamedTuple):
    """The processes that serve a machine's volumes and network, and what QEMU gets from them."""

    processes: tuple[Helper, ...]
    shares: tuple[int, ...]  # sockets of the volumes' servers
    network: int | None  # the socket of passt; None with QEMU's own network or none
    forwards: tuple[Forward, ...]  # for QEMU's own network or passt


def _start_helpers(
    machine: Machine, folder: Path, user: process.User | None, ours: ExitStack, helpers: ExitStack, *, has_network: bool
) -> _Helpers:
    """Start the servers of volumes and network. `ours` closes QEMU's sockets here, `helpers` kills the processes."""
    servers: list[Helper] = []
    shares, network, forwards = [], None, machine.forwards

    def keep(server: Helper) -> None:
        """Have the server killed if the machine cannot start."""
        helpers.callback(server.process.kill)
        servers.append(server)

    if machine.shares:
        from runner.machine import virtiofsd

        for share in machine.shares:
            server, sock = virtiofsd.serve(share, folder, machine.cgroup)
            keep(server)
            shares.append(ours.enter_context(sock).fileno())
    if has_network:
        from runner.machine import passt, relay

        forwards, relaying = relay.serve(machine.forwards, user, machine.cgroup)
        if relaying is not None:
            keep(relaying)
        if passt.is_usable() and (not machine.ipv6 or passt.has_ipv6()) and not machine.is_own_network:
            server, sock = passt.serve(forwards, machine.ipv6, machine.cgroup)
            keep(server)
            network = ours.enter_context(sock).fileno()
    return _Helpers(tuple(servers), tuple(shares), network, forwards)


def _base(machine: Machine, stack: ExitStack) -> int | None:
    """Open the base disk, or find the socket of its server. `stack` closes it."""
    if machine.base is None:
        return None
    fd = os.open(machine.base, os.O_PATH | os.O_CLOEXEC) if machine.is_base_served else open_file(machine.base)
    stack.callback(os.close, fd)
    return fd


def _pair(stack: ExitStack) -> tuple[socket.socket, int]:
    """Return a socket and the descriptor of its other end, which `stack` closes."""
    mine, theirs = socket.socketpair()
    return mine, stack.enter_context(theirs).fileno()


def command(qemu: str, machine: Machine, handles: Handles) -> list[str]:
    """Return the command line of QEMU."""
    arm = machine.platform.architecture == "arm64"
    kind = machine.kind or ("virt" if arm else "microvm")
    is_micro = kind == "microvm"
    if is_micro:
        kind += ",acpi=on,pcie=on"
    # Under TCG a `rep movsb` goes byte by byte: without these two flags kernel and libraries copy by words, nine times as fast.
    # On ARM "max" has pointer authentication, which takes three quarters of a boot under TCG.
    emulated = "neoverse-n1" if arm else "max,-erms,-fsrm"
    cpu = "host" if machine.accelerator == "kvm" else emulated
    argv = [qemu, "-accel", machine.accelerator, "-cpu", cpu]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    argv += ["-m", f"{machine.memory_mib}M", "-smp", str(machine.cpus)]
    if machine.shares:  # the servers access the memory of the guest
        argv += ["-object", f"memory-backend-memfd,id=memory,size={machine.memory_mib}M,share=on"]
        kind += ",memory-backend=memory"
    elif handles.memory is not None:
        sharing = "on" if handles.memory.is_saved else "off"
        path = f"/proc/self/fd/{handles.memory.fd}"
        argv += ["-object", f"memory-backend-file,id=memory,size={machine.memory_mib}M,share={sharing},mem-path={path}"]
        kind += ",memory-backend=memory"
        argv += [] if handles.memory.state is None else ["-incoming", "defer"]
        argv += ["-S"] if handles.memory.is_filled else []
    else:  # explicit, so that the RAM has the same name in all machines
        argv += ["-object", f"memory-backend-ram,id=memory,size={machine.memory_mib}M"]
        kind += ",memory-backend=memory"
    argv += ["-M", f"{kind},mem-merge=off"]  # with KSM a guest can find out what pages another guest has
    argv += ["-bios", FIRMWARE] if is_micro else []
    argv += ["-kernel", f"/proc/self/fd/{handles.kernel}", "-initrd", f"/proc/self/fd/{handles.initramfs}"]
    argv += ["-append", machine.cmdline]
    argv += ["-chardev", f"socket,id=console,fd={handles.console}", "-serial", "chardev:console"]
    argv += ["-chardev", f"socket,id=monitor,fd={handles.monitor}", "-mon", "chardev=monitor,mode=control"]
    argv += _disk(machine, handles)
    argv += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=channel,fd={handles.channel}"]
    argv += ["-device", "virtserialport,chardev=channel,name=rootdisk"]
    for number, fd in enumerate(handles.lanes, 1):
        argv += ["-chardev", f"socket,id=lane{number},fd={fd}"]
        argv += ["-device", f"virtserialport,chardev=lane{number},name=rootdisk.{number}"]
    argv += ["-device", "virtio-rng-pci"]
    if machine.has_balloon:  # QEMU 5.1
        argv += ["-device", "virtio-balloon-pci,free-page-reporting=on"]
    for number, (share, fd) in enumerate(zip(machine.shares, handles.shares, strict=True)):
        argv += ["-chardev", f"socket,id=share{number},fd={fd}"]
        argv += ["-device", f"vhost-user-fs-pci,chardev=share{number},tag={share.tag}"]
    if machine.network == "user":
        argv += ["-netdev", _network(machine, handles), "-device", "virtio-net-pci,netdev=net,romfile="]
    return argv


def _disk(machine: Machine, handles: Handles) -> Sequence[str]:
    """Return the options for the root disk and its backing file. The name in the overlay's header is not used."""
    device = ["-device", f"virtio-blk-pci,drive=root,{_GEOMETRY},werror=enospc,rerror=report"]
    if handles.disk is None:  # nobody reads it
        return ["-blockdev", _nothing("root"), *device, *_verity(machine, handles)]
    # A temporary disk need not be flushed to the disk of the host.
    cache = "" if machine.durable else ",cache.no-flush=on"
    argv = ["-add-fd", f"fd={handles.disk},set=1"]
    root = (
        f"node-name=root,driver={machine.disk_format},file.driver=file,file.filename=/dev/fdset/1,discard=unmap{cache}"
    )
    if handles.base is not None and machine.is_base_served:
        # QEMU connects again if the server is killed; requests wait meanwhile.
        server = f"server.type=unix,server.path=/proc/self/fd/{handles.base},reconnect-delay={RECONNECT_S}"
        argv += ["-blockdev", f"node-name=base,driver=nbd,read-only=on,{server}"]
        root += ",file.node-name=overlay,backing=base"
    elif handles.base is not None:
        argv += ["-add-fd", f"fd={handles.base},set=2"]
        base = "node-name=base,driver=raw,read-only=on,file.driver=file,file.filename=/dev/fdset/2"
        argv += ["-blockdev", base]
        root += ",backing=base"
    return [*argv, "-blockdev", root, *device, *_verity(machine, handles)]


def hand_over(machine: Machine, answer: str) -> bytes:
    """Return the QMP commands with which QEMU reads the base from a file instead of a server, without interrupting the guest.

    The descriptor of the file is sent along. The reply to the last order has the id `answer`. If QEMU refuses one (before 6.1
    it cannot change a backing file), the next ones fail too, and everything stays as it was.
    """
    file = {"driver": "file", "filename": "/dev/fdset/2"}
    # What is left out would be reset: the options are those of the command line.
    root: dict[str, object] = {"driver": machine.disk_format, "node-name": "root", "file": "overlay", "backing": "file"}
    root |= {"discard": "unmap", "cache": {"no-flush": not machine.durable}}
    return (
        qmp.order("add-fd", fdset_id=2)
        + qmp.order("blockdev-add", node_name="file", driver="raw", read_only=True, file=file)
        + qmp.order("blockdev-reopen", options=[root])
        + qmp.order("blockdev-del", _id=answer, node_name="base")
    )


def _nothing(name: str) -> str:
    """Return the block device of a disk that nobody reads."""
    return f"node-name={name},driver=null-co,size=1048576,read-zeroes=on"


def _verity(machine: Machine, handles: Handles) -> Sequence[str]:
    """Return the options for the disk with the dm-verity tree, if there is one."""
    if machine.verity is None:
        return []
    argv, tree = [], f"{_nothing('verity')},read-only=on"
    if handles.verity is not None:
        argv = ["-add-fd", f"fd={handles.verity},set=3"]
        tree = "node-name=verity,driver=raw,read-only=on,file.driver=file,file.filename=/dev/fdset/3"
    return [*argv, "-blockdev", tree, "-device", f"virtio-blk-pci,drive=verity,serial={SERIAL},rerror=report"]


def _network(machine: Machine, handles: Handles) -> str:
    if handles.is_saved and not machine.is_own_network:
        return (
            "hubport,id=net,hubid=0"  # QEMU's own network would add its state, which a machine with passt cannot read
        )
    if handles.network is not None:
        return f"stream,id=net,server=off,addr.type=fd,addr.str={handles.network}"
    ports = (f",hostfwd={f.protocol}:{f.address}:{f.host}-:{f.guest}" for f in machine.forwards)
    return "user,id=net" + "".join(ports)
