"""Route frames between a guest and its clients. Pure: no sockets, no clock.

Buffers are bounded, whatever guest and clients send:

    direction        content                                        limit
    from a client    one frame that is incomplete or blocked        REQUEST_MAX
    to a client      output without new credit                      WINDOW
    from the guest   one incomplete frame, and one read             PAYLOAD_MAX, READ_BYTES
    to the guest     frames to send                                 ROOM and one frame

Everything else that is pending (credit, signals, a terminal size, a stop) is a number in its session and becomes a frame
when there is space, so it cannot accumulate. Orders (STOP, KILL, WAIT) never wait for the guest.

A violation of the protocol ends only the session in which it occurs. The main session cannot end without the sandbox: its
invalid frames are ignored, and a guest that sends too much is not read until the client has caught up.
"""

from __future__ import annotations

from collections.abc import Callable

from rootdisk.errors import RootdiskError
from rootdisk.records import pack
from rootdisk.system.debug import debug
from rootdisk.text import printable
from runner.channel import messages
from runner.channel.messages import (
    PAYLOAD_MAX,
    REQUEST_MAX,
    WINDOW,
    Decoder,
    GuestError,
    frame,
    frame_number,
    is_number,
)
from runner.sandbox.clients import Client, Session
from runner.sandbox.pause import Pause
from runner.store.events import Events

CLIENTS_MAX = 128  # clients that have a session or wait for the end
LOGS_MAX = 10_000  # lines of a guest that --debug shows
READ_BYTES = 64 << 10  # limit of a read from the guest
VISITORS_MAX = 128  # other clients; a new one replaces the oldest
SESSIONS_MAX = 512  # including those without a client whose program still runs
ROOM = 128 << 10  # bytes queued for the guest; above that, clients are not read
REASON_BYTES = 4 << 10  # of the output of a program that cannot be started
_SIGHUP = 1
FULL = f"{CLIENTS_MAX} clients are connected to this sandbox, which is the limit"
TOO_MANY = f"{SESSIONS_MAX} commands run in this sandbox, which is the limit"
TOO_MUCH = "the guest has sent more than allowed"
VIOLATED = "the client has violated the protocol"


class Router:
    """A guest and its clients. The driver must check `is_over` and `take_stop` regularly."""

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

    def wants(self, client: Client) -> int:
        """Return how many bytes may be read from a client now."""
        if client.leaves:
            return PAYLOAD_MAX
        if client in self._blocked:
            return 0
        return max(0, messages.HEADER.size + REQUEST_MAX - len(client.decoder))

    def from_client(self, client: Client, data: bytes) -> None:
        """Process received data, at most as much as `wants` has returned."""
        if not client.leaves:
            client.decoder.add(data)
            self._listen(client)

    def is_done(self, client: Client) -> bool:
        """Return whether a client can be disconnected."""
        return client.leaves and not client.out()

    def leave(self, client: Client) -> None:
        """Remove a disconnected client. Its program gets SIGHUP."""
        if client not in self.clients:
            return
        del self.clients[client]
        self._blocked.pop(client, None)
        self.pause.leave(client)
        if client is self.main and self._ends_with_main:
            self.left = True
        self._part(client)

    def _part(self, client: Client) -> None:
        """Separate a client from its session. The session number is free when the guest reports the end."""
        if client.session is not None and client.session is not self._main_session:
            client.session.client = None
            client.session.grant(client.session.unread)
            client.session.signal(_SIGHUP)
        client.session = None

    def _listen(self, client: Client) -> None:
        """Process the frames of a client while the queue to the guest is short enough."""
        while not client.leaves and (kind := client.decoder.next_kind()) is not None:
            waits_for_guest = kind in (messages.STDIN, messages.EXEC, messages.EXEC_DETACHED)
            if waits_for_guest and (len(self._out) >= ROOM or self.pause.is_on):
                self._blocked[client] = None
                return
            decoded = client.decoder.take()
            assert decoded is not None
            self._from_client(client, kind, decoded[2])

    def _from_client(self, client: Client, kind: int, payload: bytes) -> None:
        session = client.session
        if kind == messages.KILL:
            self.is_killed = self.is_told_to_end = True
        elif kind == messages.STOP and is_number(payload):
            self.is_told_to_end = True
            self.stop(messages.number(payload))
        elif kind == messages.WAIT:
            client.waits = self._has_place(client)
        elif kind == messages.SIGNAL and is_number(payload):
            (session or self._main_session).signal(messages.number(payload))
        elif kind == messages.SNAPSHOT and session is None and client is not self.main:
            self._snapshot(client, payload)
        elif kind == messages.RESUME and client is self.pause.client:
            self.pause.let_go()
        elif kind == messages.EXEC and session is None and client is not self.main:
            self._execute(client, payload)
        elif kind == messages.EXEC_DETACHED and session is None and client is not self.main:
            self._execute_detached(client, payload)
        elif kind == messages.STDIN and session is not None and session.untaken + len(payload) <= WINDOW:
            session.untaken += len(payload)
            self._out += frame(kind, payload, session.number)
        elif kind == messages.RENAME and session is None and client is not self.main and self._rename is not None:
            self._take_name(client, payload, self._rename)
        elif kind == messages.CREDIT and session is not None and is_number(payload):
            session.grant(messages.number(payload))
        elif kind == messages.CREDIT and client is self.main:
            pass  # for the output of a program that cannot be started
        elif kind == messages.RESIZE and session is not None and is_number(payload):
            session.size = payload
        else:
            self._refuse(client, VIOLATED)

    def _has_place(self, client: Client) -> bool:
        taken = sum(not other.is_visitor for other in self.clients)
        if client.is_visitor and taken >= CLIENTS_MAX:
            self._refuse(client, FULL)
            return False
        client.is_visitor = False
        return True

    def _execute_detached(self, client: Client, request: bytes) -> None:
        if self._features & messages.HAS_DETACH:
            self._execute(client, request + pack([("detach", b"1")]))
            if client.session is not None:
                client.session.is_detached = True
        else:
            self._refuse(
                client, "this sandbox's init knows no exec --detach: leave it out, or build the artifact again"
            )

    def _snapshot(self, client: Client, payload: bytes) -> None:
        if not self._has_place(client):
            return
        why = "" if self._is_ready else "its program has not started"
        if self._is_ready and not self._features & messages.HAS_PAUSE:
            why = "the disk's init comes from an older rootdisk: build the artifact again"
        if why := why or self.pause.ask(client, payload):
            self._refuse(client, why)

    def _execute(self, client: Client, request: bytes) -> None:
        if not self._has_place(client):
            return
        if len(self._sessions) > SESSIONS_MAX:
            self._refuse(client, TOO_MANY)
            return
        number = self._last_number % 0xFFFF + 1
        while number in self._sessions:
            number = number % 0xFFFF + 1
        self._last_number = number
        client.session = self._sessions[number] = Session(number, client)
        if self.standing is not None:
            client.put(messages.NOTICE, self.standing.encode())
        self._out += frame(messages.EXEC, request, number)
        if self._events is not None:
            self._events.tell("exec", session=number)

    def _take_name(self, client: Client, payload: bytes, rename: Callable[[str], Events]) -> None:
        """Rename the sandbox for a client, which gets EXIT or the reason why not."""
        if not self._is_ready or self._stop_s is not None or self._owed_stop is not None or self.is_over:
            self._refuse(client, "its program is just starting or ending: try again")
            return
        try:
            self._events = rename(payload.decode())
        except (RootdiskError, UnicodeDecodeError) as err:
            self._refuse(client, str(err))
            return
        client.leave(frame_number(messages.EXIT, 0))

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

    def sent_to_guest(self, count: int) -> None:
        """Remove `count` sent bytes of `to_guest`."""
        del self._out[:count]
        while self._blocked and len(self._out) < ROOM and not self.pause.is_on:
            client = next(iter(self._blocked))
            del self._blocked[client]
            self._listen(client)

    def guest_wants(self) -> int:
        """Return how many bytes may be read from the guest now."""
        return 0 if self._is_flooded() else READ_BYTES

    def _is_flooded(self) -> bool:
        return self.main.session is not None and self.main.waiting >= WINDOW

    def from_guest(self, data: bytes) -> None:
        """Process received data, at most as much as `guest_wants` has returned."""
        self._decoder.add(data)
        self._hear()

    def to_client(self, client: Client) -> bytearray:
        """Return the bytes to send to a client next."""
        return client.out()

    def sent_to_client(self, client: Client, count: int) -> None:
        """Remove `count` sent bytes of `to_client`."""
        client.sent(count)
        if client is self.main:
            self._hear()

    def _hear(self) -> None:
        while not self.is_over and not self._is_flooded() and (decoded := self._decoder.take()) is not None:
            self._from_guest(*decoded)

    def _from_guest(self, kind: int, number: int, payload: bytes) -> None:
        session = self._sessions.get(number)
        if kind == messages.LOG:
            if self._logs_left:  # the output may go to a file
                self._logs_left -= 1
                debug(f"guest: {printable(payload)}")
        elif session is None:
            pass  # for no session
        elif kind in (messages.STDOUT, messages.STDERR):
            self._output(session, kind, payload)
        elif kind == messages.CREDIT and is_number(payload):
            granted = min(messages.number(payload), session.untaken)
            session.untaken -= granted
            if session.client is not None and granted:
                session.client.grant(granted)
        elif kind == messages.EXIT and is_number(payload):
            self._ended(session, messages.number(payload) & 0xFF)
        elif kind == messages.ERROR:
            self._failed(session, GuestError(printable(payload)))
        elif kind == messages.POWER and session is self._main_session and is_number(payload):
            self._powered(messages.number(payload))
        elif kind == messages.READY and session is self._main_session:
            self._started(payload)
        elif kind == messages.READY and session.is_detached:
            self._detached(session)
        elif kind in (messages.PAUSED, messages.RESUMED) and session is self._main_session:
            self.pause.hear(kind, payload)
        else:
            self._broke_rules(session, messages.broken_rules())

    def _output(self, session: Session, kind: int, payload: bytes) -> None:
        fits = session.unread + session.credit + len(payload) <= WINDOW
        if session.client is not None and (fits or session is self._main_session):
            session.unread = min(WINDOW, session.unread + len(payload))
            session.client.put(kind, payload)
        elif session.client is not None:
            self._broke_rules(session, GuestError(TOO_MUCH, "was it built by this rootdisk?"))
        else:
            session.credit = min(WINDOW, session.credit + len(payload))
            if session is self._main_session and self._write_output is not None:
                self._write_output(kind, payload)
                if not self._is_ready and self.main in self.clients and self._told < REASON_BYTES:
                    self._told += len(payload)
                    self.main.put(kind, payload[:REASON_BYTES])  # it cannot be started, and this is why

    def _started(self, payload: bytes) -> None:
        if self._is_ready:
            return
        self._is_ready = True
        version, features = payload[:4], payload[4:8]
        self._version = messages.number(version) if is_number(version) else 1
        self._features = messages.number(features) if is_number(features) else 0
        has_streams = bool(self._features & messages.HAS_STREAMS)
        error = messages.incompatible(self._version, self._needs)
        if error is None and self._needs_streams and not has_streams:
            error = messages.too_old(self._needs_streams)
        if error is not None:
            self.error = error
            return
        if self._events is not None:
            self._events.tell("ready")
        if self.main in self.clients:
            self.main.put(messages.READY, version)
            if not self._ends_with_main:
                self.main.leave()

    def _detached(self, session: Session) -> None:
        """Let the client of a detached command go: its program has started, and nobody wants its output."""
        client, session.client = session.client, None
        session.grant(session.unread)
        if client is not None:
            client.session = None
            client.leave(frame_number(messages.EXIT, 0))

    def power(self, how: int) -> None:
        """End the sandbox: its kernel says that a program has powered it off, halted or rebooted it."""
        if not self.is_over:
            self._powered(how)
            self.status = messages.REBOOTED_STATUS if how == messages.REBOOTED else 0

    def _powered(self, how: int) -> None:
        """Tell the main client once that a program has ended the machine. EXIT follows."""
        text = messages.POWER_WORDS.get(how)
        if text is not None and not self._is_powered and self.main in self.clients and not self.main.leaves:
            self._is_powered = True
            self.main.put(messages.NOTICE, text.encode())

    def _ended(self, session: Session, status: int) -> None:
        if session is self._main_session:
            self.status = status
            return
        del self._sessions[session.number]
        if self._events is not None:
            self._events.tell("exec-ended", session=session.number, status=status)
        if session.client is not None:
            session.client.leave(frame_number(messages.EXIT, status))
            session.client.session = None

    def _failed(self, session: Session, error: GuestError) -> None:
        """Handle an error of the guest for a session."""
        if session is self._main_session:
            self.error = error
            return
        self._broke_rules(session, error)
        del self._sessions[session.number]

    def _broke_rules(self, session: Session, error: GuestError) -> None:
        """End a session after a violation. Its number stays in use until the guest reports the end of the program."""
        client = session.client
        if session is self._main_session:
            debug(str(error))
        elif client is not None:
            client.leave(frame(messages.ERROR, str(error).encode()))
            self._part(client)
