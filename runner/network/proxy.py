"""The proxy of a sandbox: takes the streams of its guest, decides about each, and carries bytes; docs/howto/network.md.

Only sandboxes with --allow load this. The keeper calls it in its own loop: what may wait, the look-up of names, is done in
threads.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from rootdisk.network.rules import Rule
from rootdisk.records import Record
from runner.channel import messages
from runner.network import names
from runner.network.audit import REFUSED, Audit
from runner.network.connection import Connection
from runner.network.dialogues import ByAddress, ByProxy
from runner.network.guards import Insertion
from runner.network.lanes import Lanes
from runner.network.lookups import Lookups
from runner.network.rules import Rules
from runner.network.streams import Stream, Streams

PORT, DNS_PORT = 3128, 53
LOCAL = IPv4Address("127.0.0.1")
CONNECTIONS_MAX = 256
_TICK_S = 1.0
_TURN_S = 0.003  # for frames, for what they have brought, and for the connections' sockets; one of these may take more
_MESSAGE_MAX = 4096  # of DNS over TCP


def guest_records(rules: Sequence[Rule]) -> list[Record]:
    """Return what the slot says of a proxy: where the guest's init listens, and the variables of programs."""
    lines = [(LOCAL, 1, PORT), (LOCAL, 1, DNS_PORT), *names.places(rules)]
    records = [("lanes", str(messages.LANES).encode())]
    records += [("listen", f"{address}\t{count}\t{port}".encode()) for address, count, port in lines]
    records.append(("datagrams", str(DNS_PORT).encode()))
    listed = {str(rule.network.network_address) for rule in rules if rule.network and rule.network.num_addresses == 1}
    direct = [host for host in ("localhost", "127.0.0.1", "::1") if host not in listed]
    url = f"http://{LOCAL}:{PORT}"
    values = {"HTTP_PROXY": url, "HTTPS_PROXY": url, "ALL_PROXY": url, "NO_PROXY": ",".join(direct)}
    for name, value in values.items():
        records += [("env-default", f"{word}={value}".encode()) for word in (name, name.lower())]
    return records


class Proxy:
    """The connections of a sandbox."""

    FULL = f"{CONNECTIONS_MAX} connections are open, which is the limit"

    def __init__(
        self,
        rules: Rules,
        audit: Audit,
        published: Sequence[tuple[socket.socket, int]] = (),
        secrets: Insertion | None = None,
    ) -> None:
        """`published` has listening sockets of the host, each with its port in the guest."""
        self.rules = rules
        self.audit = audit
        self._secrets = secrets
        self.streams = Streams()
        self.lookups = Lookups()
        self._names = names.Names(rules)
        self._connections: dict[Connection, None] = {}
        self._by_socket: dict[object, Connection] = {}
        self._published = dict(published)
        self._watch: Callable[[socket.socket, int], None] = lambda sock, events: None
        self._lanes = Lanes(())
        self._blocked: socket.socket | None = None  # the lane that takes nothing more for now
        self._tick_at = 0.0
        self._behind: list[object] = []  # sockets whose events had to wait
        self._is_published = False

    def begin(self, watch: Callable[[socket.socket, int], None], lanes: Sequence[socket.socket]) -> None:
        """Use `watch` to wait for events of sockets from now on, of the guest's `lanes` too."""
        self._watch = watch
        self._watch(self.lookups.wake, EVENT_READ)
        self._lanes = Lanes(lanes)
        for lane in lanes:
            lane.setblocking(False)
            self._watch(lane, EVENT_READ)

    def _publish(self) -> None:
        """Take connections to published ports from now on."""
        self._is_published = True
        for sock in self._published:
            sock.setblocking(False)
            self._watch(sock, EVENT_READ)

    def _hear(self) -> None:
        """Process what the guest has sent."""
        for kind, number, payload in self._lanes.receive(_turn()):
            self.streams.from_guest(kind, number, payload)
        self.streams.tell_listeners(_turn())
        for stream, address, port in self.streams.take_accepted():
            self._open(stream, address, port)
        for sender, query in self.streams.take_queries():
            if (answer := self._names.answer(query)) is not None:
                self.streams.reply(sender, answer)

    def _tell(self) -> None:
        """Send the guest what there is for it."""
        before, blocked = self._blocked, self._lanes.send(self.streams.to_guest, _turn())
        if before is not blocked:
            for lane, events in ((before, EVENT_READ), (blocked, EVENT_READ | EVENT_WRITE)):
                if lane is not None:
                    self._watch(lane, events)
            self._blocked = blocked

    def _open(self, stream: Stream, address: IPv4Address, port: int) -> None:
        name = self._names.name_at(address)
        if (address, port) == (LOCAL, DNS_PORT):
            stream.listener = _Questioner(self.streams, stream, self._names)
        elif (address, port) == (LOCAL, PORT) or name is not None:
            connection = Connection(
                self, stream, ByAddress(name, port, self._secrets) if name is not None else ByProxy(self._secrets)
            )
            self._connections[connection] = None
        else:
            self.audit.add(str(address), port, REFUSED, why="an address that stands for no name")
            self.streams.close(stream, at_once=True)
        if stream.listener is not None:
            stream.listener.heard()  # its first words may have come with it

    # Called by the keeper

    @property
    def next_time(self) -> float | None:
        """The time of the next call of `carry` (monotonic seconds); None if only events count."""
        if self._is_behind:
            return 0.0
        return self._tick_at + _TICK_S if self._connections else None

    @property
    def _is_behind(self) -> bool:
        return self.streams.is_behind or self._lanes.is_behind

    def carry(self, ready: Mapping[Any, int], *, is_ready: bool) -> None:
        """Process events of sockets, and end what has taken too long. `is_ready`: the guest's program has started."""
        if is_ready and not self._is_published:
            self._publish()
        if self._is_behind or not self._lanes.known.isdisjoint(ready):
            self._hear()
        if self.lookups.wake in ready:
            for found in self.lookups.answers():
                assert isinstance(found.who, Connection)
                found.who.found(found.addresses, found.error)
        self._carry_connections(ready)
        now = time.monotonic()
        if now >= self._tick_at + _TICK_S:
            self._tick_at = now
            for connection in [known for known in self._connections if known.deadline is not None]:
                if connection.deadline is not None and now >= connection.deadline:
                    connection.expire()
        self._tell()

    def _carry_connections(self, ready: Mapping[Any, int]) -> None:
        """Process events of sockets; those first that had no turn at the last call."""
        turns = dict.fromkeys((*self._behind, *ready))
        self._behind, is_late = [], _turn()
        for source in turns:
            if source not in ready:
                continue
            if source in self._published:
                self._accept(source)
            elif (connection := self._by_socket.get(source)) is not None:
                if is_late():
                    self._behind.append(source)  # it is reported again
                else:
                    connection.carry(ready[source])

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = self.streams.connect(self._published[listener])
        if stream is None:
            sock.close()
            return
        connection = Connection(self, stream, None, sock)
        self._connections[connection] = None
        connection.update()

    def close(self) -> None:
        """End all connections."""
        for connection in list(self._connections):
            connection.end()
        for sock in self._published:
            sock.close()

    # Called by connections

    def is_full(self) -> bool:
        """Return whether no other connection may be opened. A look-up counts until its answer, which a program need not wait for."""
        active = sum(connection.is_active for connection in self._connections)
        return max(active, self.lookups.waiting) >= CONNECTIONS_MAX

    def watch(self, connection: Connection, events: int) -> None:
        """Wait for events of a connection's socket."""
        if events != connection.events:
            assert connection.sock is not None
            connection.events = events
            self._by_socket[connection.sock] = connection
            self._watch(connection.sock, events)

    def unwatch(self, connection: Connection) -> None:
        """Stop watching a connection's socket, which will be closed."""
        self.watch(connection, 0)
        self._by_socket.pop(connection.sock, None)

    def forget(self, connection: Connection) -> None:
        """Remove a connection that is over."""
        self._connections.pop(connection, None)


def _turn() -> Callable[[], bool]:
    """Return a function that says whether this turn has taken long enough: the keeper has orders to hear."""
    end = time.monotonic() + _TURN_S
    return lambda: time.monotonic() >= end


class _Questioner:
    """DNS over TCP, RFC 1035 section 4.2.2: each message has its length before it."""

    def __init__(self, streams: Streams, stream: Stream, known: names.Names) -> None:
        self._streams, self._stream, self._names = streams, stream, known

    def heard(self) -> None:
        """Answer all questions that are complete."""
        data = self._stream.incoming
        while len(data) >= 2:
            size = int.from_bytes(data[:2], "big")
            if size > _MESSAGE_MAX:
                self._streams.close(self._stream, at_once=True)
                return
            if len(data) < 2 + size or len(self._stream.outgoing) > _MESSAGE_MAX:
                break
            answer = self._names.answer(bytes(data[2 : 2 + size]))
            if answer is None:
                self._streams.close(self._stream, at_once=True)
                return
            self._streams.taken(self._stream, 2 + size)
            self._streams.send(self._stream, len(answer).to_bytes(2, "big") + answer)
        if self._stream.is_ended:
            self._streams.close(self._stream)

    def drained(self) -> None:
        """Continue: there is room for answers again."""
        self.heard()

    def lost(self) -> None:
        """Do nothing: it holds nothing else."""
