"""A connection of a program in the guest: its request, the decision, and then bytes both ways.

Nothing of what the guest says reaches a server before it is checked. A refused connection is answered, read until the program
ends it, and closed: a reset could overtake the answer.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections import deque
from enum import Enum
from ipaddress import IPv4Address
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

from rootdisk.network.hosts import Address, Refused
from rootdisk.network.rules import THIS_HOST
from runner.network.audit import ALLOWED, FAILED, REFUSED
from runner.network.dialogues import Dialogue
from runner.network.guards import Failure, Filter, Guard, Target, Unusable
from runner.network.streams import OUT_MAX, Stream

if TYPE_CHECKING:
    from runner.network.proxy import Proxy

ASK_S = 30.0  # for a program to say what it wants
CONNECT_S = 30.0  # to find and reach a server
LINGER_S = 5.0  # for a program to read the reason and end
_READ_BYTES = 64 << 10
_UP_MAX = 64 << 10  # checked bytes that wait for a server
_CHECKED_BYTES = 8 << 10  # in one go: chunks and requests may be tiny, and each takes time
_RESET = struct.pack("ii", 1, 0)


class Phase(Enum):
    """The state of a connection."""

    ASK, LOOK_UP, CONNECT, RELAY, LINGER, OVER = range(6)


class Connection:
    """A stream of the guest and a socket."""

    def __init__(
        self, proxy: Proxy, stream: Stream, dialogue: Dialogue | None, sock: socket.socket | None = None
    ) -> None:
        """Take a stream that the program has opened, with its `dialogue`; or, without one, a connection from the host's `sock` to a published port."""
        self.stream = stream
        self._proxy = proxy
        self._dialogue = dialogue
        self.sock = sock
        self.events = 0  # that are waited for
        self.phase = Phase.ASK if dialogue else Phase.RELAY
        self.deadline: float | None = time.monotonic() + ASK_S if dialogue else None
        self._guard: Guard | None = None
        self._filter: Filter | None = None  # the guard, if the answers go through it too
        self._up = bytearray()  # checked, for the server
        self._addresses: deque[Address] = deque()
        self._error = ""
        self._is_server_done = self._is_shut = False
        self._sent = self._received = 0
        stream.listener = self

    @property
    def is_active(self) -> bool:
        """Return whether it has a server, or will have one."""
        return self.phase in (Phase.LOOK_UP, Phase.CONNECT, Phase.RELAY)

    # From the guest

    def heard(self) -> None:
        """Process what the program has sent."""
        if self.phase is Phase.ASK:
            self._ask()
        elif self.phase is Phase.RELAY:
            self._push()
        elif self.phase is Phase.LINGER:
            self._proxy.streams.taken(self.stream, len(self.stream.incoming))
            if self.stream.is_ended:
                self._close()
        self.update()

    def drained(self) -> None:
        """Read on from the server: the guest has taken something."""
        self.update()

    def lost(self) -> None:
        """End: the guest has closed the stream."""
        self._close(at_once=True)

    def _ask(self) -> None:
        assert self._dialogue is not None
        incoming = self.stream.incoming
        before = len(incoming)
        try:
            is_known = self._dialogue.hear(incoming)
            if self._dialogue.out:
                self._proxy.streams.send(self.stream, self._dialogue.out)
                self._dialogue.out = b""
            self._proxy.streams.grant(self.stream, before - len(incoming))
            if is_known:
                self._decide()
            elif self.stream.is_ended:
                self._close()
        except Refused as err:
            if self._dialogue.out:
                self._proxy.streams.send(self.stream, self._dialogue.out)
            self._refuse(Failure.REFUSED, str(err))

    def _decide(self) -> None:
        """Look the target up if a rule is for it; Refused if none is."""
        target = self._target
        self._proxy.rules.check(target.host, target.port)
        if self._proxy.is_full():
            raise Refused(self._proxy.FULL)
        self.phase, self.deadline = Phase.LOOK_UP, time.monotonic() + CONNECT_S
        if not isinstance(target.host, str):
            self._connect_to((target.host,), "")
        elif target.host in self._proxy.rules.own:
            self._connect_to((self._proxy.rules.own[target.host],), "")
        elif target.host == THIS_HOST:
            self._connect_to((IPv4Address("127.0.0.1"),), "")
        else:
            self._proxy.lookups.ask(self, target.host, target.port)

    @property
    def _target(self) -> Target:
        assert self._dialogue is not None
        assert self._dialogue.target is not None
        return self._dialogue.target

    # To the server

    def found(self, addresses: tuple[Address, ...], error: str) -> None:
        """Connect to the first address that may be used; no other look-up follows."""
        if self.phase is not Phase.LOOK_UP:
            return
        target, refusal = self._target, ""
        usable = []
        for address in addresses:
            try:
                self._proxy.rules.check_address(address, target.port)
                if _is_own(address, target.port) and not self._proxy.rules.lists(address, target.port):
                    raise Refused(f"its name leads to {address}, an address of this host that no --allow lists")
                usable.append(address)
            except Refused as err:
                refusal = refusal or str(err)
        if refusal and not usable:
            self._refuse(Failure.REFUSED, refusal)
        elif not usable:
            self._refuse(Failure.UNKNOWN, f"its name cannot be looked up: {error or 'it has no address'}")
        else:
            self._connect_to(tuple(usable), "")
        self.update()

    def _connect_to(self, addresses: tuple[Address, ...], error: str) -> None:
        self._addresses = deque(addresses)
        self.phase = Phase.CONNECT
        self._connect(error)

    def _connect(self, error: str) -> None:
        """Try the next address."""
        self._drop_socket()
        while self._addresses:
            address = self._addresses.popleft()
            sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
            sock.setblocking(False)
            code = sock.connect_ex((str(address), self._target.port))
            if code in (0, errno.EINPROGRESS):
                self.sock = sock
                return
            error = os.strerror(code)
            sock.close()
        self._refuse(Failure.UNREACHABLE, f"cannot be reached: {error}")

    def carry(self, events: int) -> None:
        """Process events of the socket."""
        if self.phase is Phase.CONNECT and self.sock is not None:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._connect(os.strerror(code))
            elif events & EVENT_WRITE:
                self._begin_relay()
        elif self.phase is Phase.RELAY:
            if events & EVENT_READ:
                self._pull()
            if self.phase is Phase.RELAY:
                self._push()
        self.update()

    def _begin_relay(self) -> None:
        assert self._dialogue is not None
        assert self.sock is not None
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._proxy.streams.send(self.stream, self._dialogue.agree())
        self._guard = self._dialogue.guard()
        self._filter = self._guard if isinstance(self._guard, Filter) else None
        self.phase = Phase.RELAY
        self.deadline = time.monotonic() + ASK_S if self._guard else None
        self._push()

    def _push(self) -> None:
        """Send the guest's checked bytes to the server, as many as the socket takes."""
        incoming, streams = self.stream.incoming, self._proxy.streams
        assert self.sock is not None
        try:
            while True:
                before = len(incoming)
                if self._guard is None:
                    count = self.sock.send(incoming[:_READ_BYTES]) if incoming else 0
                    streams.taken(self.stream, count)
                else:
                    if len(self._up) < _UP_MAX:
                        self._up += self._guard.feed(incoming, _CHECKED_BYTES)
                    streams.grant(self.stream, before - len(incoming))
                    self._tell()
                    count = self.sock.send(self._up[:_READ_BYTES]) if self._up else 0
                    del self._up[:count]
                    if self._guard.is_open and not self._up:
                        self._guard = None
                self._sent += count
                if count:
                    self.deadline = None
                elif len(incoming) == before:
                    break
                if self._guard is not None:  # others first
                    streams.hear_again(self.stream)
                    return
        except BlockingIOError:
            return
        except (Refused, Unusable) as err:
            self._refuse_bytes(err)
            return
        except OSError:
            self._close(at_once=True)
            return
        is_holding = self._filter is not None and self._filter.is_holding
        if self.stream.is_ended and not self._up and not self._is_shut and not is_holding:
            self._is_shut = True
            try:
                if self._filter is not None:
                    self.sock.send(self._filter.end())
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._close(at_once=True)
                return
        self._see_end()

    def _pull(self) -> None:
        """Read what the server has sent."""
        assert self.sock is not None
        try:
            data = self.sock.recv(_READ_BYTES if self._filter is None else _CHECKED_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._close(at_once=True)
            return
        self._received += len(data)
        if not data and self._filter is not None and self._filter.is_untold:
            self._is_server_done = True  # the program is told as soon as it can be
            self._see_end()
            return
        if self._filter is not None:
            try:
                self._filter.back(data) if data else self._filter.finish()
            except Unusable as err:
                self._refuse_bytes(err)
                return
            self._tell()
        elif data:
            self._proxy.streams.send(self.stream, data)
        if data:
            return
        self._is_server_done = True
        self._proxy.streams.end(self.stream)
        self._see_end()

    def _see_end(self) -> None:
        if self._is_server_done and self.stream.is_ended and not self.stream.incoming and not self._up:
            self._close()
        elif self._is_server_done and self._dialogue is not None and self.deadline is None:
            self.deadline = time.monotonic() + ASK_S  # a program that does not end has its place for so long

    # The end

    def _refuse(self, failure: Failure, text: str) -> None:
        """Answer the program, write it down, and wait for its end."""
        dialogue = self._dialogue
        assert dialogue is not None
        host, port = (str(dialogue.target.host), dialogue.target.port) if dialogue.target else (dialogue.asked, 0)
        shown = f"{dialogue.target.text}: {text}" if dialogue.target else text
        verdict = REFUSED if failure is Failure.REFUSED else FAILED
        self._proxy.audit.add(host, port, verdict, why=text, sent=self._sent, received=self._received)
        self._linger(dialogue.refuse(failure, f"{verdict}: {shown}"))

    def _tell(self) -> None:
        """Send the program what a filter has for it."""
        if self._filter is not None and self._filter.for_guest:
            self._proxy.streams.send(self.stream, bytes(self._filter.for_guest))
            self._filter.for_guest.clear()

    def _refuse_bytes(self, err: Refused | Unusable) -> None:
        """End a connection whose bytes break a rule or make no sense."""
        assert self._guard is not None
        failure, verdict = (Failure.REFUSED, REFUSED) if isinstance(err, Refused) else (Failure.UNREACHABLE, FAILED)
        self._record(verdict, str(err))
        self._tell()
        self._linger(self._guard.refuse(failure, f"{verdict}: {self._target.text}: {err}"))

    def _record(self, verdict: str, why: str = "") -> None:
        """Log the connection to the server."""
        self._proxy.audit.add(
            str(self._target.host),
            self._target.port,
            verdict,
            why=why,
            sent=self._sent,
            received=self._received,
            secrets=self._filter.used if self._filter is not None else (),
        )

    def _linger(self, last: bytes) -> None:
        self._drop_socket()
        self.phase, self.deadline = Phase.LINGER, time.monotonic() + LINGER_S
        streams = self._proxy.streams
        streams.send(self.stream, last)
        streams.end(self.stream)
        self.heard()

    def expire(self) -> None:
        """End a connection that has taken too long."""
        if self.phase is Phase.CONNECT and self._addresses:
            self.deadline = time.monotonic() + CONNECT_S
            self._connect("")
            self.update()
        elif self.phase in (Phase.LOOK_UP, Phase.CONNECT):
            self._refuse(Failure.LATE, "no answer in time")
        else:
            self._close(at_once=True)

    def _close(self, *, at_once: bool = False) -> None:
        """Give up stream and socket. A server sees a reset if the program has not ended its side."""
        if self.phase is Phase.OVER:
            return
        if self.phase is Phase.RELAY and self._dialogue is not None:
            self._record(ALLOWED)
        if at_once and self.sock is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._drop_socket()
        self.phase = Phase.OVER
        self._proxy.streams.close(self.stream, at_once=at_once)
        self._proxy.forget(self)

    def end(self) -> None:
        """End with the sandbox."""
        self._close(at_once=True)

    def _drop_socket(self) -> None:
        if self.sock is not None:
            self._proxy.unwatch(self)
            self.sock.close()
            self.sock = None

    def update(self) -> None:
        """Register the events that the connection can continue with."""
        events = 0
        if self.phase is Phase.CONNECT:
            events = EVENT_WRITE
        elif self.phase is Phase.RELAY:
            if not self._is_server_done and len(self.stream.outgoing) < OUT_MAX and not self._is_checking:
                events |= EVENT_READ
            if (self.stream.incoming and self._guard is None) or self._up:
                events |= EVENT_WRITE
        if self.sock is not None:
            self._proxy.watch(self, events)

    @property
    def _is_checking(self) -> bool:
        """Tell whether nothing was checked yet: until then a server is not listened to."""
        return self._guard is not None and self.deadline is not None


def _is_own(address: Address, port: int) -> bool:
    """Return whether an address is one of this host. Nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((str(address), port))
            return str(sock.getsockname()[0]) == str(address)
    except OSError:
        return False
