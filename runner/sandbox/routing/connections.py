"""A guest and its clients: who is connected, and what is queued for each. Pure: no sockets, no clock.

router.py, which is built on this, knows what the frames of guest and clients ask for.
"""

from __future__ import annotations

from collections.abc import Callable

from runner.channel import messages
from runner.channel.messages import (
    PAYLOAD_MAX,
    WINDOW,
    Decoder,
    GuestError,
    frame,
    frame_number,
)
from runner.sandbox.routing.clients import Client, Session
from runner.sandbox.routing.pause import Pause
from runner.store.events import Events

CLIENTS_MAX = 128  # clients that have a session or wait for the end
LOGS_MAX = 10_000  # lines of a guest that --debug shows
READ_BYTES = 64 << 10  # limit of a read from the guest
VISITORS_MAX = 128  # other clients; a new one replaces the oldest
ROOM = 128 << 10  # bytes queued for the guest; above that, clients are not read
_SIGHUP = 1
FULL = f"{CLIENTS_MAX} clients are connected to this sandbox, which is the limit"


class Connections:
    """A guest, its clients and its sessions."""

    def __init__(
        self,
        write_output: Callable[[int, bytes], None] | None,
        needs: str = "",
        needs_streams: str = "",
        *,
        is_tied: bool = False,
        events: Events | None = None,
        rename: Callable[[str], Events] | None = None,
    ) -> None:
        """Prepare for a guest that has not connected yet.

        Args:
            write_output: Gets the output of the main program of a detached sandbox. Without it the main client does.
            needs: Names options that only guests of channel version messages.OPTIONS_VERSION know.
            needs_streams: Names options for which the guest has to know streams.
            is_tied: The sandbox ends with its main client, even if that does not get the output.
            events: Are told of the start of the program and of commands.
            rename: Gives the sandbox another name, and returns its events by that name. RootdiskError if it cannot.
        """
        self.status: int | None = None  # exit status of the program
        self.error: GuestError | None = None  # why the sandbox failed
        self.is_killed = False
        self.standing: str | None = None  # notice for every new session
        self.pause = Pause()
        self.left = False  # the client of a foreground sandbox has disconnected
        self.is_told_to_end = False  # by a client
        self._stop_s: int | None = None  # for `take_stop`
        self._write_output = write_output
        self._events = events
        self._rename = rename
        self._ends_with_main = is_tied or write_output is None
        self._decoder = Decoder(messages.FROM_GUEST, PAYLOAD_MAX)
        self._out = bytearray()
        self._owed_stop: int | None = None
        self._hold: bool | None = None  # pending for the guest
        self._needs = needs
        self._needs_streams = needs_streams
        self._features = 0  # bits of what else the guest knows
        self._version = 0  # channel version of the guest; 0 until READY
        self._logs_left = LOGS_MAX
        self.clients: dict[Client, None] = {}
        self.main = Client()
        self.clients[self.main] = None
        self._main_session = Session(0, None if write_output else self.main)
        self._sessions = {0: self._main_session}
        self._is_ready = self._is_powered = False
        self._told = 0  # bytes of output that a detached sandbox's client got, before the program had started
        if not write_output:
            self.main.session = self._main_session
        self._last_number = 0
        self._blocked: dict[Client, None] = {}  # until the queue to the guest is shorter; in order of arrival

    @property
    def held(self) -> int:
        """The number of buffered bytes."""
        return len(self._decoder) + len(self._out) + sum(client.held for client in self.clients)

    @property
    def is_ready(self) -> bool:
        """Return whether the program has started."""
        return self._is_ready

    @property
    def is_over(self) -> bool:
        """Return whether the sandbox has to end."""
        return self.status is not None or self.error is not None or self.is_killed or self.left

    # Clients

    def join(self) -> Client:
        """Add a client. The driver must call `too_many` first."""
        client = Client()
        self.clients[client] = None
        return client

    def too_many(self) -> Client | None:
        """Return the client to remove before another one joins, or None: the oldest visitor."""
        visitors = [client for client in self.clients if client.is_visitor and client is not self.main]
        return visitors[0] if len(visitors) >= VISITORS_MAX else None

    def is_done(self, client: Client) -> bool:
        """Return whether a client can be disconnected."""
        return client.leaves and not client.out()

    def to_client(self, client: Client) -> bytearray:
        """Return the bytes to send to a client next."""
        return client.out()

    def _part(self, client: Client) -> None:
        """Separate a client from its session. The session number is free when the guest reports the end."""
        if client.session is not None and client.session is not self._main_session:
            client.session.client = None
            client.session.grant(client.session.unread)
            client.session.signal(_SIGHUP)
        client.session = None

    def _has_place(self, client: Client) -> bool:
        taken = sum(not other.is_visitor for other in self.clients)
        if client.is_visitor and taken >= CLIENTS_MAX:
            self._refuse(client, FULL)
            return False
        client.is_visitor = False
        return True

    def _refuse(self, client: Client, why: str) -> None:
        """Disconnect a client with an error, and end its session."""
        if client is self.main and self._ends_with_main:
            self.left = True
        client.leave(frame(messages.ERROR, why.encode()))
        self._part(client)

    # Orders from clients and the driver

    def stop(self, seconds: int) -> None:
        """Send the stop signal to the program; `take_stop` tells the driver to kill it after `seconds`."""
        self.pause.end("the sandbox is being stopped")
        self._stop_s = seconds if self._stop_s is None else min(seconds, self._stop_s)
        self._owed_stop = seconds if self._owed_stop is None else min(seconds, self._owed_stop)

    def take_stop(self) -> int | None:
        """Return the seconds until the program is to be killed, if `stop` was called since the last call."""
        seconds, self._stop_s = self._stop_s, None
        return seconds

    def hold(self, is_held: bool) -> None:
        """Forbid or allow the guest to use new blocks of its disk."""
        self._hold = is_held

    def notice(self, text: str, *, to_main: bool = True) -> None:
        """Send a notice to all clients with a session, and to the main client if `to_main`."""
        for client in self.clients:
            if client is self.main and not to_main:
                continue
            if not client.leaves and (client.session is not None or client is self.main):
                client.put(messages.NOTICE, text.encode())

    def finish(self, status: int, error: str) -> None:
        """Queue the last frames for all clients: the sandbox has ended."""
        for client in self.clients:
            last = [frame_number(messages.EXIT, status)]
            if client is self.main and not client.leaves:
                client.leave(*([frame(messages.ERROR, error.encode())] if error else []), *last)
            elif client.waits and not client.leaves:
                client.leave(*last)
            else:
                client.leave()

    # The guest

    def to_guest(self) -> bytearray:
        """Return the bytes to send to the guest next."""
        self._out += self.pause.take_frames()
        if self.pause.is_on:
            return self._out
        if self._owed_stop is not None and len(self._out) < ROOM:
            self._out += frame_number(messages.STOP, self._owed_stop)
            self._owed_stop = None
        if self._hold is not None and self._version >= messages.HOLD_VERSION and len(self._out) < ROOM:
            self._out += frame_number(messages.HOLD, int(self._hold))
            self._hold = None
        for session in self._sessions.values():
            if len(self._out) >= ROOM:
                break
            for owed in session.owed():
                self._out += owed
        return self._out

    def guest_wants(self) -> int:
        """Return how many bytes may be read from the guest now."""
        return 0 if self._is_flooded() else READ_BYTES

    def _is_flooded(self) -> bool:
        return self.main.session is not None and self.main.waiting >= WINDOW

    def _powered(self, how: int) -> None:
        """Tell the main client once that a program has ended the machine. EXIT follows."""
        text = messages.POWER_WORDS.get(how)
        if text is not None and not self._is_powered and self.main in self.clients and not self.main.leaves:
            self._is_powered = True
            self.main.put(messages.NOTICE, text.encode())
