"""The process that keeps one sandbox: carries bytes between the guest and the clients, and ends with the machine.

    guest ◀── channel ──▶ keeper ◀── socket pair ──▶ runner boot, in the foreground (session 0)
                             ▲ ◀───── control ──────▶ runner exec, cp (a session each), stop, kill, wait
    console ─▶ console.log ──┤──▶ output.log, of a detached sandbox's program
    machine ─▶ machine.log ──┘

What the bytes mean is router.py's; here are sockets, signals and time. Each socket's events follow from what the router
wants of it, asked again at every turn, so there is no state of a socket that could be wrong.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from selectors import EVENT_READ, EVENT_WRITE
from typing import IO

from rootdisk.system import process
from rootdisk.text import one_line
from runner.channel import messages
from runner.channel.messages import GuestError
from runner.machine import console
from runner.machine.model import Helper, Vm, how_ended
from runner.sandbox.clients import Client
from runner.sandbox.logs import Log
from runner.sandbox.room import CONTINUE, Monitor, Room
from runner.sandbox.router import Router
from runner.sandbox.watched import Source, Watched, receive

STOP_S = 10  # what a program has to end by itself
GRACE_S = 5.0  # what its guest has beyond that
POWER_OFF_S = 15.0  # what a guest has to write everything back
TIMED_OUT, KILLED = 124, 128 + signal.SIGKILL
_ACCEPTED_MAX = 64  # connections in a turn
_PATIENCE_S = 2.0  # with a client that asks for nothing, when others come
_LOOK_S = 1.0  # for a process that has closed its output to be seen as ended
_RETRY_S = 0.2  # after a connection could not be taken for want of descriptors


class Silent(Exception):
    """Nothing was heard of the machine at all."""


class Gone(Exception):
    """The client in whose foreground the sandbox ran has gone."""


class Keeper:
    """One sandbox from its start to its program's end."""

    def __init__(
        self,
        vm: Vm,
        listener: socket.socket,
        client: socket.socket,
        console: Log,
        output: Log | None,
        *,
        timeout_s: float | None,
        silent_s: float | None,
        logs: Mapping[IO[bytes], Log] | None = None,
        room: Room | None = None,
        needs: str = "",
    ) -> None:
        """`client` has session 0, or with an `output` log is only told when the program has started.

        `timeout_s` is how long the program may run, `silent_s` how long nothing may be heard at first; `logs` are those of
        what the machine's processes write; `room` watches the host's disk; `needs` names options that need a newer init.
        """
        self._vm = vm
        self._listener = listener
        self._logs: dict[Source, Log] = {vm.console: console}
        for source, log in (logs or {}).items():
            self._logs[source] = log
        self._room = room
        self._monitor = Monitor()
        self._listens_to_monitor = vm.monitor is not None
        self.is_off = False  # its kernel has ended: there is nobody to answer any more
        self._console_end = b""  # its last, perhaps unfinished, line
        self._power: int | None = None  # how a program has ended the machine, as its console says
        self.lost = ""  # what the sandbox had to be stopped for
        self.has_timed_out = False
        self._router = Router(output.write_frame if output else None, needs)
        self._watched = Watched()
        self._clients = {client: self._router.main}
        self._joined: dict[Client, float] = {}  # since when each has been here
        start = time.monotonic()
        self._deadline = start + timeout_s if timeout_s else None
        self._silent_at = start + silent_s if silent_s else None
        self._kill_at: float | None = None
        self._accept_at = 0.0
        for sock in (vm.channel, vm.console, vm.monitor, listener, client):
            if sock is not None:
                sock.setblocking(False)

    def run(self) -> int:
        """Until the program has ended: its exit status, TIMED_OUT or KILLED.

        GuestError with the guest's reason, or "" where the machine went without a word; Silent; Gone.
        """
        router = self._router
        with _signals() as wake, contextlib.ExitStack() as stack:
            for source in (wake, *self._logs):
                self._watched.watch(source, EVENT_READ)
            for used in (wake, *self._logs, self._vm.channel, self._listener, self._vm.monitor):
                if used is not None:
                    stack.callback(self._watched.watch, used, 0)
            while not router.is_over:
                self._look()
                found = self._watched.wait(self._wait_s())
                if wake in found:
                    wake.recv(64)
                    router.stop(STOP_S)
                for source in self._logs.keys() & found.keys():
                    self._read_log(source)
                self._carry(found)
                self._see_power()
                self._see_room(found)
                if self._listener in found:
                    self._accept()
                if (status := self._out_of_time()) is not None and not router.is_over:
                    return status
        if router.error is not None:
            raise router.error
        if router.left:
            raise Gone
        return KILLED if router.status is None else router.status

    def acknowledge(self) -> None:
        """Let the guest write everything back and power off: until it has, or POWER_OFF_S seconds.

        What it still says is read and dropped: a guest that waits for its output to go would not hear us.
        """
        channel, deadline = self._vm.channel, time.monotonic() + POWER_OFF_S
        out = bytearray(self._router.to_guest() + messages.frame(messages.ACK))
        talk = (channel, *self._logs)
        while (left := deadline - time.monotonic()) > 0:
            for source in talk:
                self._watched.watch(source, EVENT_READ | (EVENT_WRITE if source is channel and out else 0))
            found = self._watched.wait(left)
            for source in [source for source in talk if found.get(source, 0) & EVENT_READ]:
                data = receive(source, 64 << 10)
                if data == b"":
                    talk = tuple(other for other in talk if other is not source)
                    self._watched.watch(source, 0)
                elif data and source in self._logs:
                    self._logs[source].write(data)
            if channel not in talk:
                break
            if found.get(channel, 0) & EVENT_WRITE:
                with contextlib.suppress(BlockingIOError):
                    del out[: channel.send(out)]
        for source in talk:
            self._watched.watch(source, 0)

    def tell(self, status: int, error: str = "") -> None:
        """Tell every client how the sandbox has ended, after all that is for them.

        Output of the program is never lost to a slow reader: the main client is waited for. One of exec's may go the way of
        its sandbox.
        """
        self._router.finish(status, error)
        deadline = time.monotonic() + GRACE_S
        while self._clients:
            now = time.monotonic()
            for sock, client in list(self._clients.items()):
                if self._router.is_done(client) or (now >= deadline and client is not self._router.main):
                    self._drop(sock)
            self._look_at_clients()
            if self._clients:
                self._carry(self._watched.wait(deadline - now if now < deadline else None))

    def drain(self) -> None:
        """What console and processes still hold when the machine has ended: mostly why."""
        self._vm.console.settimeout(1)
        for source, log in self._logs.items():
            with contextlib.suppress(OSError):
                while data := receive(source, 64 << 10):
                    log.write(data)

    def close(self) -> None:
        """Let all clients go."""
        for sock in list(self._clients):
            self._drop(sock)
        self._watched.end()

    def _look(self) -> None:
        """Wait for what the router wants."""
        wanted = EVENT_READ if self._router.guest_wants() else 0
        self._watched.watch(self._vm.channel, wanted | (EVENT_WRITE if self._router.to_guest() else 0))
        if self._vm.monitor is not None and self._listens_to_monitor:
            self._watched.watch(self._vm.monitor, EVENT_READ | (EVENT_WRITE if self._monitor.out else 0))
        self._watched.watch(self._listener, EVENT_READ if time.monotonic() >= self._accept_at else 0)
        self._look_at_clients()

    def _look_at_clients(self) -> None:
        for sock, client in self._clients.items():
            wanted = EVENT_READ if self._router.wants(client) else 0
            self._watched.watch(sock, wanted | (EVENT_WRITE if self._router.to_client(client) else 0))

    def _wait_s(self) -> float | None:
        room_at = None if self._room is None else self._room.next_look
        times = [self._deadline, self._silent_at, self._kill_at, self._accept_at or None, room_at]
        ends = [end for end in times if end is not None]
        return min(ends) - time.monotonic() if ends else None

    def _out_of_time(self) -> int | None:
        """How the sandbox ends if its time is over; Silent."""
        now = time.monotonic()
        if (seconds := self._router.take_stop()) is not None:
            end = now + seconds + GRACE_S
            self._kill_at = end if self._kill_at is None else min(end, self._kill_at)
        if now >= self._accept_at:
            self._accept_at = 0.0
        if self._silent_at is not None and now >= self._silent_at:
            raise Silent
        if self._deadline is not None and now >= self._deadline:
            self.has_timed_out = True
            return TIMED_OUT
        return KILLED if self._kill_at is not None and now >= self._kill_at else None

    def _carry(self, found: Mapping[Source, int]) -> None:
        """Read and write where that is possible."""
        channel = self._vm.channel
        if (events := found.get(channel, 0)) and not self._router.is_over:
            if events & EVENT_READ and (size := self._router.guest_wants()):
                self._read_guest(size)
            if events & EVENT_WRITE:
                self._send(channel, self._router.to_guest(), self._router.sent_to_guest)
        for source, events in found.items():
            if isinstance(source, socket.socket) and (client := self._clients.get(source)) is not None:
                self._carry_client(source, client, events)

    def _read_guest(self, size: int) -> None:
        data = receive(self._vm.channel, size)
        if data == b"":
            self._read_log(self._vm.console)
            self._see_power()
            if self._router.is_over:
                return
            raise GuestError("")
        if data:
            self._silent_at = None
            self._router.from_guest(data)

    def _carry_client(self, sock: socket.socket, client: Client, events: int) -> None:
        if events & EVENT_READ and (size := self._router.wants(client)):
            data = receive(sock, size)
            if data == b"":
                self._drop(sock)
                return
            self._router.from_client(client, data or b"")
        if events & EVENT_WRITE:
            try:
                self._send(
                    sock, self._router.to_client(client), lambda count: self._router.sent_to_client(client, count)
                )
            except GuestError:
                self._drop(sock)
                return
        if self._router.is_done(client):
            self._drop(sock)

    def _send(self, sock: socket.socket, data: bytearray, sent: Callable[[int], None]) -> None:
        """Send what can be; GuestError if nobody is there any more."""
        try:
            if data:
                sent(sock.send(data))
        except BlockingIOError:
            pass
        except OSError as err:
            raise GuestError("") from err

    def _read_log(self, source: Source) -> None:
        data = receive(source, 64 << 10)
        if data == b"":
            self._watched.watch(source, 0)
            for helper in self._vm.helpers:
                if helper.process.stdout is source:
                    self._lose(source, helper)
        elif data:
            if source is self._vm.console:
                self._silent_at = None
                self._read_console(data)
            self._logs[source].write(data)

    def _read_console(self, data: bytes) -> None:
        text = self._console_end + data
        self._power = console.power_of(text) or self._power
        self._console_end = text.rpartition(b"\n")[2][-console.LINE_MAX :]

    def _see_power(self) -> None:
        """End a sandbox whose kernel says that it is off: a halted one would stand still for ever."""
        how, self._power = self._power, None
        if how is not None and not self._router.is_over:
            self._router.power(how)
            self.is_off = self._router.is_over

    def _lose(self, source: Source, helper: Helper) -> None:
        """Tell of a helper that has ended, and stop a sandbox whose programs would wait for it for ever.

        A guest's kernel takes back no request that it has sent to a volume's server, and no other can take its place.
        """
        try:
            how = how_ended(helper.process.wait(_LOOK_S))
        except subprocess.TimeoutExpired:  # it only says nothing more
            return
        said = console.tail(self._logs[source].path)[-1:] if how.startswith("exit status") else []
        text = ": ".join((f"{helper.what} is lost", "its server ended", *filter(None, [how, *said])))
        self.say(text, to_main=not helper.is_waited_for)  # which is told at the end
        if helper.is_waited_for:
            self.lost = text
            self._router.stop(STOP_S)

    def say(self, text: str, *, to_main: bool = True) -> None:
        """To everybody who waits for this sandbox, and to the keeper's log."""
        self._router.notice(text, to_main=to_main)
        with contextlib.suppress(OSError):  # the disk of the log may be full
            print(one_line(text), file=sys.stderr, flush=True)

    def _see_room(self, found: Mapping[Source, int]) -> None:
        """Look at the host's disk and at what QEMU says of it."""
        now, monitor = time.monotonic(), self._vm.monitor
        if monitor is not None and found.get(monitor, 0) & EVENT_READ:
            data = receive(monitor, 64 << 10)
            if data == b"":
                self._listens_to_monitor = False
                self._watched.watch(monitor, 0)
            if self._monitor.feed(data or b"") and self._room is not None:
                self._room.stop(now)
        if monitor is not None and found.get(monitor, 0) & EVENT_WRITE:
            with contextlib.suppress(GuestError):
                self._send(monitor, self._monitor.out, self._monitor.sent)
        if self._room is None:
            return
        was_held = self._room.is_held
        if self._room.look(now):
            self._monitor.out += CONTINUE
        if self._room.is_held != was_held:
            self._router.hold(self._room.is_held)
        self._router.standing = self._room.text
        if (text := self._room.to_say(now)) is not None:
            self.say(text)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_MAX):
            if (oldest := self._router.too_many()) is not None and not self._evict(oldest):
                return
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptor is free: one may be in a while
                self._accept_at = time.monotonic() + _RETRY_S
                return
            sock.setblocking(False)
            self._clients[sock] = client = self._router.join()
            self._joined[client] = time.monotonic()

    def _evict(self, client: Client) -> bool:
        """Let a client that asks for nothing go, unless it has only just come: then nobody else comes in for a while."""
        until = self._joined[client] + _PATIENCE_S
        if time.monotonic() < until:
            self._accept_at = until
            return False
        for sock in [sock for sock, known in self._clients.items() if known is client]:
            self._drop(sock)
        return True

    def _drop(self, sock: socket.socket) -> None:
        """A client has gone, or is to go."""
        client = self._clients.pop(sock)
        self._joined.pop(client, None)
        self._router.leave(client)
        self._watched.close(sock)


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that becomes readable with SIGTERM, SIGINT or SIGHUP: they stop the sandbox."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        for name in process.heard(signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(name, lambda *_: None)
        signal.set_wakeup_fd(theirs.fileno())
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(-1)
