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
    VIOLATED,
    WINDOW,
    GuestError,
    frame,
    frame_number,
    is_number,
)
from runner.sandbox.routing.clients import Client, Session
from runner.sandbox.routing.connections import ROOM, Connections
from runner.store.events import Events

SESSIONS_MAX = 512  # including those without a client whose program still runs
REASON_BYTES = 4 << 10  # of the output of a program that cannot be started
TOO_MANY = f"{SESSIONS_MAX} commands run in this sandbox, which is the limit"
TOO_MUCH = "the guest has sent more than allowed"


class Router(Connections):
    """The requests of guest and clients to each other. The driver must check `is_over` and `take_stop` regularly."""

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

    def sent_to_guest(self, count: int) -> None:
        """Remove `count` sent bytes of `to_guest`."""
        del self._out[:count]
        while self._blocked and len(self._out) < ROOM and not self.pause.is_on:
            client = next(iter(self._blocked))
            del self._blocked[client]
            self._listen(client)

    def from_guest(self, data: bytes) -> None:
        """Process received data, at most as much as `guest_wants` has returned."""
        self._decoder.add(data)
        self._hear()

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
