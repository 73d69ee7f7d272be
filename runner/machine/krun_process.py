"""The process of a libkrun machine. libkrun takes it over and never returns.

    python -I -S krun_process.py LIBRARY FD

FD contains the machine as JSON, from runner/machine/krun.py. No other module of this package is loaded. An error is one line
on standard error. The functions are those of include/libkrun.h, libkrun 1.17 and newer.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import sys
from typing import Any, NoReturn

LOG_ERRORS = 1  # KRUN_LOG_LEVEL_ERROR
DISK_FORMATS = {"raw": 0, "qcow2": 1}  # KRUN_DISK_FORMAT_*
SYNC_NONE, SYNC_FULL = 0, 2  # KRUN_SYNC_*
NET_FEATURES = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 10 | 1 << 11 | 1 << 14  # COMPAT_NET_FEATURES
MAC = b"\x52\x54\x00\x12\x34\x56"  # the default of QEMU; sandboxes do not see each other


class Library:
    """The loaded library. A failed call ends the process."""

    def __init__(self, path: str) -> None:
        try:
            self._library = ctypes.CDLL(path)
        except OSError as err:
            fail(f"cannot load libkrun: {err}")

    def call(self, name: str, *arguments: Any) -> int:
        """Call a function and return its result, which is not negative."""
        try:
            function = getattr(self._library, name)
        except AttributeError:
            fail(
                f"this libkrun has no {name}: install libkrun 1.17 or newer (1.18 for read-only volumes), built with BLK=1 and NET=1"
            )
        result = int(function(*map(_passed, arguments)))
        if result < 0:
            fail(f"libkrun: {name}: {os.strerror(-result)}{HINTS.get((name, -result), '')}")
        return result


HINTS = {
    ("krun_start_enter", errno.ENOENT): ": is libkrunfw installed?",
    ("krun_start_enter", errno.EINVAL): ": is /dev/kvm usable? runner doctor",
}


def _passed(argument: Any) -> Any:
    """Convert an argument for ctypes."""
    if isinstance(argument, str):
        return os.fsencode(argument)
    if isinstance(argument, list):
        return (ctypes.c_char_p * (len(argument) + 1))(*map(os.fsencode, argument), None)
    return argument


def fail(message: str) -> NoReturn:
    """Print `message` and exit."""
    os.write(2, message.encode(errors="replace") + b"\n")  # the reader makes it safe to show
    os._exit(1)


def enter(krun: Library, machine: dict[str, Any], console: str) -> NoReturn:
    """Configure the machine and start it in this process."""
    krun.call("krun_set_log_level", LOG_ERRORS)
    context = krun.call("krun_create_ctx")
    krun.call("krun_set_vm_config", context, machine["cpus"], machine["memory_mib"])
    form, sync = DISK_FORMATS[machine["disk_format"]], SYNC_FULL if machine["durable"] else SYNC_NONE
    krun.call("krun_add_disk3", context, "root", machine["disk"], form, False, False, sync)
    krun.call("krun_set_root_disk_remount", context, "/dev/vda", "ext4", None)
    krun.call("krun_set_console_output", context, console)
    ports = krun.call("krun_add_virtio_console_multiport", context)
    channel = machine["channel"]
    krun.call("krun_add_console_port_inout", context, ports, "rootdisk", channel, channel)
    for number, lane in enumerate(machine["lanes"], 1):
        krun.call("krun_add_console_port_inout", context, ports, f"rootdisk.{number}", lane, lane)
    # Otherwise libkrun gives the guest sockets of the host, with any network.
    krun.call("krun_disable_implicit_vsock", context)
    if machine["network"] is not None:
        krun.call("krun_add_net_unixstream", context, None, machine["network"], MAC, NET_FEATURES, 0)
    for tag, path, read_only in machine["shares"]:
        if read_only:
            krun.call("krun_add_virtiofs3", context, tag, path, ctypes.c_uint64(0), True)
        else:
            krun.call("krun_add_virtiofs", context, tag, path)
    krun.call("krun_set_exec", context, "/.rootdisk/init", [], machine["environment"])
    if machine["user"]:
        uid, gid, groups = machine["user"]
        os.setgroups(groups)
        krun.call("krun_setgid", context, gid)
        krun.call("krun_setuid", context, uid)
    krun.call("krun_start_enter", context)
    fail("libkrun: krun_start_enter has returned")


def console_for(sock: int, owner: int | None) -> str:
    """Return a path for libkrun to write the console to. A forked process forwards all of it to `sock`.

    libkrun ends this process without warning, so a thread could lose output. The forwarder also kills this process when the
    other end of `sock` is closed: the death signal is lost when libkrun changes its user.
    """
    reader, writer = os.pipe()
    machine = os.getpid()
    if os.fork():
        os.close(reader)
        if owner is not None:
            os.fchown(writer, owner, -1)
        return f"/proc/self/fd/{writer}"
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in (reader, sock):
            try:
                os.close(fd)
            except OSError:
                pass  # the descriptor of listdir itself is closed already
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(sock, 0)
    try:
        while True:
            ready = dict(poll.poll())
            if sock in ready:
                raise BrokenPipeError
            data = os.read(reader, 1 << 16)
            if not data:
                os._exit(0)
            while data:
                data = data[os.write(sock, data) :]
    except OSError:
        os.kill(machine, signal.SIGKILL)
    os._exit(0)


def main(library: str, description: int) -> NoReturn:
    """Run the machine that the descriptor `description` contains."""
    with open(description, "rb") as file:
        machine = json.load(file)
    krun = Library(library)
    console = console_for(machine["console"], machine["user"][0] if machine["user"] else None)
    enter(krun, machine, console)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
