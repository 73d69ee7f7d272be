"""The keeper process of a sandbox: forwards data between guest and clients, and ends with the machine.

    guest ◀── channel ──▶ keeper ◀── socket pair ──▶ runner boot, in the foreground (session 0)
                             ▲ ◀───── control ──────▶ runner exec, cp (a session each), stop, kill, wait
    console ─▶ console.log ──┤──▶ output.log, of a detached sandbox's program
    machine ─▶ machine.log ──┘

router.py knows what the bytes mean. This module has sockets, signals and time. The events to wait for are computed from the
router in each iteration, so no state of a socket can be stale.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from selectors import EVENT_READ, EVENT_WRITE
from typing import IO, TYPE_CHECKING

from rootdisk.text import one_line
from runner.channel import messages
from runner.channel.messages import GuestError
from runner.machine import console
from runner.machine.model import Helper, Vm, how_ended
from runner.sandbox import saving
from runner.sandbox.clients import Client
from runner.sandbox.logs import Log
from runner.sandbox.room import CONTINUE, Monitor, Room
from runner.sandbox.router import Router
from runner.sandbox.state import BY_HOST, BY_USER
from runner.sandbox.watched import Source, Watched, receive, signals
from runner.store.events import Events

if TYPE_CHECKING:
    from runner.network.proxy import Proxy
    from runner.sandbox.feed import Feed

STOP_S = 10  # for a program to end after the stop signal
GRACE_S = 5.0  # in addition, for its guest
POWER_OFF_S = 15.0  # for a guest to write back all data and power off
TIMED_OUT, KILLED = 124, 128 + signal.SIGKILL
_ACCEPTED_MAX = 64  # connections in an iteration
_PATIENCE_S = 2.0  # minimum time for a client without a request, if others want to connect
_LOOK_S = 1.0  # for a process to end after it has closed its output
_RETRY_S = 0.2  # after accept has failed because no descriptor was free


class Silent(Exception):
    """The machine has sent nothing at all."""


class Gone(Exception):
    """The client of a foreground sandbox has disconnected."""


class Keeper:
    """Runs a sandbox from the start of its machine to the end of its program."""

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
        is_tied: bool = False,
        events: Events | None = None,
        on_ready: Callable[[], None] | None = None,
        proxy: Proxy | None = None,
        feed: Feed | None = None,
        rename: Callable[[str], Events] | None = None,
        open_memory: Callable[[str], int] | None = None,
    ) -> None:
        """Prepare to serve the machine `vm`.

        `timeout_s` is how long the program may run, `silent_s` how long nothing may be heard at first; `logs` are those of
        what the machine's processes write; `room` watches the host's disk; `needs` names options that need a newer init. With `is_tied`
        a detached sandbox too ends with the connection of its main client. `events` are told of what happens. `on_ready` is called once
        when the program has started. `proxy` has the connections of a guest of --allow. `feed` connects a machine whose disk is
        not complete. `rename` gives the sandbox another name. `open_memory` creates the file for the memory of a snapshot, by the
        name of its new directory.
        """
        self._vm = vm
        self._listener = listener
        self._logs: dict[Source, Log] = {vm.console: console}
        for source, log in (logs or {}).items():
            self._logs[source] = log
        self._room = room
        self._on_ready = on_ready
        self._feed = feed
        self._open_memory = open_memory
        self._monitor = Monitor()
        self._listens_to_monitor = vm.monitor is not None
        self.is_off = False  # its kernel has ended: there is nobody to answer any more
        self._console_end = b""  # its last, perhaps unfinished, line
        self._init_spoke = False
        self._power: int | None = None  # how a program has ended the machine, as its console says
        self.lost = ""  # the lost helper for which the sandbox was stopped
        self.has_timed_out = False
        self._is_signalled = False
        self._router = Router(
            output.write_frame if output else None,
            needs,
            "--allow" if proxy else "",
            is_tied=is_tied,
            events=events,
            rename=rename,
        )
        self._watched = Watched()
        self._proxy = proxy
        if proxy is not None:
            proxy.begin(self._watched.watch, vm.lanes)
        self._clients = {client: self._router.main}
        self._joined: dict[Client, float] = {}  # when each client has connected
        start = time.monotonic()
        self._deadline = start + timeout_s if timeout_s else None
        self._silent_at = start + silent_s if silent_s else None
        self._kill_at: float | None = None
        self._accept_at = 0.0
        for sock in (vm.channel, vm.console, vm.monitor, listener, client):
            if sock is not None:
                sock.setblocking(False)

    @property
    def ended_by(self) -> str:
        """BY_USER or BY_HOST if the user or this host has told the sandbox to end, else ""."""
        return BY_USER if self._router.is_told_to_end else BY_HOST if self._is_signalled else ""

    @property
    def has_started(self) -> bool:
        """Return whether the program has started."""
        return self._router.is_ready

    def run(self) -> int:
        """Serve until the program ends. Return its exit status, TIMED_OUT or KILLED.

        Raises:
            Gone: The client of a foreground sandbox has disconnected.
            GuestError: The guest has failed, with its reason; with "" if the machine ended without one.
            Silent: The machine has sent nothing for `silent_s` seconds.
        """
        router = self._router
        with signals() as wake, contextlib.ExitStack() as stack:
            for source in (wake, *self._logs):
                self._watched.watch(source, EVENT_READ)
            for watched in (wake, *self._logs, self._vm.channel, self._listener, self._vm.monitor):
                if watched is not None:
                    stack.callback(self._watched.watch, watched, 0)
            if self._proxy is not None:
                stack.callback(self._proxy.close)
            while not router.is_over:
                self._look()
                ready = self._watched.wait(self._wait_s())
                if wake in ready:
                    wake.recv(64)
                    self._is_signalled = True
                    router.stop(STOP_S)
                for source in self._logs.keys() & ready.keys():
                    self._read_log(source)
                self._carry(ready)
                self._see_ready()
                if self._proxy is not None:
                    self._proxy.carry(ready, is_ready=router.is_ready)
                self._see_power()
                self._see_room(ready)
                self._see_feed(ready)
                self._see_pause()
                if self._listener in ready:
                    self._accept()
                if (status := self._out_of_time()) is not None and not router.is_over:
                    return status
        if router.error is not None:
            raise router.error
        if router.left:
            raise Gone
        return KILLED if router.status is None else router.status

    def acknowledge(self) -> None:
        """Tell the guest to write back all data and power off. Wait for that, at most POWER_OFF_S seconds.

        Read and drop its remaining output: a guest that waits to send output would not read our frame.
        """
        channel, deadline = self._vm.channel, time.monotonic() + POWER_OFF_S
        out = bytearray(self._router.to_guest() + messages.frame(messages.ACK))
        sources = (channel, *self._logs)
        while (left := deadline - time.monotonic()) > 0:
            for source in sources:
                self._watched.watch(source, EVENT_READ | (EVENT_WRITE if source is channel and out else 0))
            ready = self._watched.wait(left)
            for source in [source for source in sources if ready.get(source, 0) & EVENT_READ]:
                data = receive(source, 64 << 10)
                if data == b"":
                    sources = tuple(other for other in sources if other is not source)
                    self._watched.watch(source, 0)
                elif data and source in self._logs:
                    self._logs[source].write(data)
            if channel not in sources:
                break
            if ready.get(channel, 0) & EVENT_WRITE:
                with contextlib.suppress(BlockingIOError):
                    del out[: channel.send(out)]
        for source in sources:
            self._watched.watch(source, 0)

    def tell(self, status: int, error: str = "") -> None:
        """Send all clients their remaining data and how the sandbox has ended.

        Wait for the main client however slow it reads, so that no output of the program is lost. Other clients are disconnected
        after GRACE_S seconds.
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
        """Read the rest of console and process output after the machine has ended: it often has the reason."""
        self._vm.console.settimeout(1)
        for source, log in self._logs.items():
            with contextlib.suppress(OSError):
                while data := receive(source, 64 << 10):
                    log.write(data)

    def close(self) -> None:
        """Disconnect all clients."""
        for sock in list(self._clients):
            self._drop(sock)
        self._watched.end()

    def _look(self) -> None:
        """Register the events that the router wants."""
        wanted = EVENT_READ if self._router.guest_wants() else 0
        self._watched.watch(self._vm.channel, wanted | (EVENT_WRITE if self._router.to_guest() else 0))
        if self._vm.monitor is not None and self._listens_to_monitor:
            self._watched.watch(self._vm.monitor, EVENT_READ | (EVENT_WRITE if self._monitor.out else 0))
        for sock in self._feed.sockets if self._feed is not None else ():
            self._watched.watch(sock, EVENT_READ)
        self._watched.watch(self._listener, EVENT_READ if time.monotonic() >= self._accept_at else 0)
        self._look_at_clients()

    def _look_at_clients(self) -> None:
        for sock, client in self._clients.items():
            wanted = EVENT_READ if self._router.wants(client) else 0
            self._watched.watch(sock, wanted | (EVENT_WRITE if self._router.to_client(client) else 0))

    def _wait_s(self) -> float | None:
        room_at = None if self._room is None else self._room.next_look
        feed_at = None if self._feed is None else self._feed.next_look
        proxy_at = None if self._proxy is None else self._proxy.next_time
        pause_at = self._router.pause.next_look
        times = [self._deadline, self._silent_at, self._kill_at, self._accept_at or None, room_at, proxy_at, feed_at]
        times.append(pause_at)
        ends = [end for end in times if end is not None]
        return min(ends) - time.monotonic() if ends else None

    def _out_of_time(self) -> int | None:
        """Return the exit status if a deadline has passed, else None.

        Raises:
            Silent: The machine has sent nothing in time.
        """
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

    def _carry(self, ready: Mapping[Source, int]) -> None:
        """Read from and write to sockets that are ready."""
        channel = self._vm.channel
        if (events := ready.get(channel, 0)) and not self._router.is_over:
            if events & EVENT_READ and (size := self._router.guest_wants()):
                self._read_guest(size)
            if events & EVENT_WRITE:
                self._send(channel, self._router.to_guest(), self._router.sent_to_guest)
        for source, events in ready.items():
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
        """Send as much as possible and report it to `sent`.

        Raises:
            GuestError: The peer has closed the connection.
        """
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
        self._init_spoke |= b"rootdisk: " in text
        self._console_end = text.rpartition(b"\n")[2][-console.LINE_MAX :]

    def _see_power(self) -> None:
        """End a sandbox whose kernel says that it is off: a halted one would stand still for ever."""
        how, self._power = self._power, None
        # An init that cannot start its program says so, and ends the machine itself.
        if how is not None and (self._router.is_ready or not self._init_spoke) and not self._router.is_over:
            self._router.power(how)
            self.is_off = self._router.is_over

    def _lose(self, source: Source, helper: Helper) -> None:
        """Report a helper that has ended. Stop the sandbox if its programs would wait forever for the helper.

        The kernel of a guest cannot cancel a request to the server of a volume, and another server cannot continue it.
        """
        try:
            how = how_ended(helper.process.wait(_LOOK_S))
        except subprocess.TimeoutExpired:  # it has closed its output, but still runs
            return
        last_line = console.tail(self._logs[source].path)[-1:] if how.startswith("exit status") else []
        text = ": ".join((f"{helper.what} is lost", "its server ended", *filter(None, [how, *last_line])))
        self.say(text, to_main=not helper.is_waited_for)  # the main client gets it as the final error
        if helper.is_waited_for:
            self.lost = text
            self._router.stop(STOP_S)

    def say(self, text: str, *, to_main: bool = True) -> None:
        """Send a notice to all clients that wait for this sandbox, and to the keeper's log."""
        self._router.notice(text, to_main=to_main)
        with contextlib.suppress(OSError):  # the disk may be full
            print(one_line(text), file=sys.stderr, flush=True)

    def _see_ready(self) -> None:
        if self._on_ready is not None and self._router.is_ready:
            on_ready, self._on_ready = self._on_ready, None
            on_ready()

    def _see_room(self, ready: Mapping[Source, int]) -> None:
        """Check the free space of the host's disk and messages of QEMU about it."""
        now, monitor = time.monotonic(), self._vm.monitor
        if monitor is not None and ready.get(monitor, 0) & EVENT_READ:
            data = receive(monitor, 64 << 10)
            if data == b"":
                self._listens_to_monitor = False
                self._watched.watch(monitor, 0)
            if self._monitor.feed(data or b"") and self._room is not None:
                self._room.stop(now)
        if monitor is not None and ready.get(monitor, 0) & EVENT_WRITE:
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

    def _see_feed(self, ready: Mapping[Source, int]) -> None:
        """Connect the machine to the server of its disk, and say what the server says."""
        if self._feed is None:
            return
        if self._feed.listener in ready:
            self._feed.accept()
        for sock in [sock for sock in self._feed.sockets if sock is not self._feed.listener and sock in ready]:
            self._watched.watch(sock, 0)  # it may be closed now
            for text in self._feed.hear():
                self._tell_of_disk(text)
        if text := self._feed.connect():
            self._tell_of_disk(text)
        if self._vm.monitor is not None and self._feed.hand_over(self._monitor, self._vm.monitor):
            for sock in self._feed.sockets:
                self._watched.watch(sock, 0)
            self._feed.close()
            self._feed = None

    def _tell_of_disk(self, text: str) -> None:
        """Say something that explains what the guest's kernel says, in its console too."""
        self._logs[self._vm.console].write(f"runner: {text}\n".encode())
        self.say(text)

    def _see_pause(self) -> None:
        """Go on with a snapshot."""
        is_full = self._room is not None and self._room.is_stopped
        if self._open_memory is not None:
            saving.go_on(self._router.pause, self._monitor, self._vm.monitor, self._open_memory, is_full=is_full)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_MAX):
            if (oldest := self._router.too_many()) is not None and not self._evict(oldest):
                return
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptor is free: try again later
                self._accept_at = time.monotonic() + _RETRY_S
                return
            sock.setblocking(False)
            self._clients[sock] = client = self._router.join()
            self._joined[client] = time.monotonic()

    def _evict(self, client: Client) -> bool:
        """Disconnect a client without a request. If it has just connected, stop accepting for a while and return False."""
        until = self._joined[client] + _PATIENCE_S
        if time.monotonic() < until:
            self._accept_at = until
            return False
        for sock in [sock for sock, known in self._clients.items() if known is client]:
            self._drop(sock)
        return True

    def _drop(self, sock: socket.socket) -> None:
        """Remove a client and close its socket."""
        client = self._clients.pop(sock)
        self._joined.pop(client, None)
        self._router.leave(client)
        self._watched.close(sock)
