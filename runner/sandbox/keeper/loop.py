"""The keeper of a sandbox while its machine runs: forwards data between guest and clients, and ends with the machine.

    guest ◀── channel ──▶ keeper ◀── socket pair ──▶ runner boot, in the foreground (session 0)
                             ▲ ◀───── control ──────▶ runner exec, cp (a session each), stop, kill, wait
    console ─▶ console.log ──┤──▶ output.log, of a detached sandbox's program
    machine ─▶ machine.log ──┘

router.py knows what the bytes mean. This module has the loop, signals and time; client_sockets.py has the sockets of clients,
machine_output.py the console and the logs. The events to wait for are computed from the router in each iteration, so no state
of a socket can be stale.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Callable, Mapping
from selectors import EVENT_READ, EVENT_WRITE
from typing import IO, TYPE_CHECKING

from rootdisk.text import one_line
from runner.channel.messages import GuestError
from runner.machine.model import Helper, Vm
from runner.sandbox.keeper import saving
from runner.sandbox.keeper.client_sockets import ClientSockets
from runner.sandbox.keeper.ending import KILLED, TIMED_OUT, Gone, Silent
from runner.sandbox.keeper.machine_output import MachineOutput
from runner.sandbox.keeper.power_off import power_off
from runner.sandbox.keeper.room import CONTINUE, Monitor, Room
from runner.sandbox.keeper.watched import Source, Watched, receive, send, signals
from runner.sandbox.output.logs import Log
from runner.sandbox.routing.router import Router
from runner.sandbox.state import BY_HOST, BY_USER, STOP_S
from runner.store.events import Events

if TYPE_CHECKING:
    from runner.network.proxy import Proxy
    from runner.sandbox.keeper.feed import Feed

GRACE_S = 5.0  # in addition, for its guest


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

        Args:
            vm: The running machine.
            listener: The control socket, for clients that come later.
            client: The connection of the main client.
            console: The log of the guest's kernel.
            output: The log of a detached sandbox's program.
            timeout_s: How long the program may run.
            silent_s: How long nothing may be heard at first.
            logs: The logs of what the machine's processes write.
            room: Watches the host's disk.
            needs: Names the options that need a newer init.
            is_tied: A detached sandbox too ends with the connection of its main client.
            events: Is told what happens.
            on_ready: Called once when the program has started.
            proxy: Has the connections of a guest with --allow.
            feed: Connects a machine whose disk is not complete.
            rename: Gives the sandbox another name.
            open_memory: Creates the file for the memory of a snapshot, by the name of its new directory.
        """
        self._vm = vm
        self._listener = listener
        self._room = room
        self._on_ready = on_ready
        self._feed = feed
        self._open_memory = open_memory
        self._monitor = Monitor()
        self._listens_to_monitor = vm.monitor is not None
        self.is_off = False  # its kernel has ended: there is nobody to answer any more
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
        self.output = MachineOutput(vm, console, logs or {}, self._watched)
        self._proxy = proxy
        if proxy is not None:
            proxy.begin(self._watched.watch, vm.lanes)
        self._client_sockets = ClientSockets(self._router, self._watched, listener, client)
        start = time.monotonic()
        self._deadline = start + timeout_s if timeout_s else None
        self._silent_at = start + silent_s if silent_s else None
        self._kill_at: float | None = None
        for sock in (vm.channel, vm.console, vm.monitor):
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
            for source in (wake, *self.output.sources):
                self._watched.watch(source, EVENT_READ)
            for watched in (wake, *self.output.sources, self._vm.channel, self._listener, self._vm.monitor):
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
                for source in set(self.output.sources) & ready.keys():
                    self._read_output(source)
                self._carry(ready)
                self._see_ready()
                if self._proxy is not None:
                    self._proxy.carry(ready, is_ready=router.is_ready)
                self._see_power()
                self._see_room(ready)
                self._see_feed(ready)
                self._see_pause()
                if self._listener in ready:
                    self._client_sockets.accept()
                if (status := self._out_of_time()) is not None and not router.is_over:
                    return status
        if router.error is not None:
            raise router.error
        if router.left:
            raise Gone
        return KILLED if router.status is None else router.status

    def acknowledge(self) -> None:
        """Have the guest write back all data and power off."""
        power_off(self._vm.channel, self._router.to_guest(), self.output, self._watched)

    def tell(self, status: int, error: str = "") -> None:
        """Send all clients their remaining data and how the sandbox has ended.

        Wait for the main client however slow it reads, so that no output of the program is lost. Other clients are disconnected
        after GRACE_S seconds.
        """
        self._router.finish(status, error)
        self._client_sockets.finish(GRACE_S)

    def close(self) -> None:
        """Disconnect all clients."""
        self._client_sockets.close()
        self._watched.end()

    def _look(self) -> None:
        """Register the events that the router wants."""
        wanted = EVENT_READ if self._router.guest_wants() else 0
        self._watched.watch(self._vm.channel, wanted | (EVENT_WRITE if self._router.to_guest() else 0))
        if self._vm.monitor is not None and self._listens_to_monitor:
            self._watched.watch(self._vm.monitor, EVENT_READ | (EVENT_WRITE if self._monitor.out else 0))
        for sock in self._feed.sockets if self._feed is not None else ():
            self._watched.watch(sock, EVENT_READ)
        self._client_sockets.watch()

    def _wait_s(self) -> float | None:
        room_at = None if self._room is None else self._room.next_look
        feed_at = None if self._feed is None else self._feed.next_look
        proxy_at = None if self._proxy is None else self._proxy.next_time
        pause_at = self._router.pause.next_look
        times = [
            self._deadline,
            self._silent_at,
            self._kill_at,
            self._client_sockets.next_time,
            room_at,
            proxy_at,
            feed_at,
        ]
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
                send(channel, self._router.to_guest(), self._router.sent_to_guest)
        self._client_sockets.carry(ready)

    def _read_guest(self, size: int) -> None:
        data = receive(self._vm.channel, size)
        if data == b"":
            self._read_output(self._vm.console)
            self._see_power()
            if self._router.is_over:
                return
            raise GuestError("")
        if data:
            self._silent_at = None
            self._router.from_guest(data)

    def _read_output(self, source: Source) -> None:
        helper = self.output.read(source)
        if self.output.has_spoken:
            self._silent_at = None
        if helper is not None:
            self._lose(helper)

    def _see_power(self) -> None:
        """End a sandbox whose kernel says that it is off: a halted one would stand still for ever."""
        how = self.output.take_power(is_ready=self._router.is_ready)
        if how is not None and not self._router.is_over:
            self._router.power(how)
            self.is_off = self._router.is_over

    def _lose(self, helper: Helper) -> None:
        """Report a helper that has ended. Stop the sandbox if its programs would wait forever for the helper.

        The kernel of a guest cannot cancel a request to the server of a volume, and another server cannot continue it.
        """
        if (text := self.output.loss(helper)) is None:
            return
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
                send(monitor, self._monitor.out, self._monitor.sent)
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
        self.output.note(text)
        self.say(text)

    def _see_pause(self) -> None:
        """Continue with a snapshot."""
        is_full = self._room is not None and self._room.is_stopped
        if self._open_memory is not None:
            saving.go_on(self._router.pause, self._monitor, self._vm.monitor, self._open_memory, is_full=is_full)
