"""Connections with a deadline for each wait: for the head of a response, and for more of its body.

The time-out of a socket restarts with every byte, so a server that sends a header very slowly could block its reader
forever. One thread watches all waits. It can also abort all of them at once, which a fetch over several connections needs
if one fails or the user presses Ctrl-C.

Connections go only to addresses that were checked; see addresses.py.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from rootdisk.registry.addresses import Reach

LOOK_S = 0.1


class Watch:
    """Watches the sockets that threads wait for."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.reach = Reach()
        self._lock = threading.Lock()
        self._waits: dict[object, tuple[socket.socket, float]] = {}  # until when, time.monotonic()
        self._sockets: WeakKeyDictionary[urllib3.BaseHTTPResponse, socket.socket] = WeakKeyDictionary()
        self._looking = False

    def stop(self) -> None:
        """Abort all current and future waits; they raise TimeoutError."""
        with self._lock:
            self.stopped.set()
            for sock, _ in self._waits.values():
                _break(sock)

    def adopt(self, pool: Any, *, home: bool) -> None:
        """Watch new connections of `pool`; `home` tells whether they go to the registry itself."""
        kind = _TLSConnection if isinstance(pool, urllib3.HTTPSConnectionPool) else _Connection
        # The user has chosen the proxy, so its address is not checked.
        reach = self.reach if pool.proxy is None else None
        pool.ConnectionCls = functools.partial(kind, watch=self, reach=reach, home=home)

    def head(self, connection: HTTPConnection) -> urllib3.HTTPResponse:
        """Return the response to the request of `connection`. Its head must be complete within the time-out.

        Raises:
            TimeoutError: It is not, or the watch was stopped.
        """
        sock = getattr(connection.sock, "socket", connection.sock)  # through a TLS proxy, urllib3's SSLTransport
        assert isinstance(sock, socket.socket)
        assert isinstance(connection.timeout, int | float)
        with self._within(sock, connection.timeout):
            response = HTTPConnection.getresponse(connection)
        self._sockets[response] = sock
        return response

    def read1(self, response: urllib3.BaseHTTPResponse, max_bytes: int, seconds: float) -> bytes:
        """Return bytes of a body as soon as there are any; b"" at the end.

        Raises:
            TimeoutError: Nothing came within `seconds`, or the watch was stopped.
        """
        with self._within(self._sockets[response], seconds):
            data = response.read1(max_bytes, decode_content=False)
            if response.length_remaining == 0:
                # Only this read lets http.client notice the end, so that the connection can be reused.
                response.read(1, decode_content=False)
            return data

    @contextlib.contextmanager
    def _within(self, sock: socket.socket, seconds: float) -> Iterator[None]:
        key = object()
        with self._lock:
            if self.stopped.is_set():
                raise TimeoutError("aborted")
            self._waits[key] = sock, time.monotonic() + seconds
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="runner watch", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                # Do not trust bytes from a socket that was shut down.
                broken = self._waits.pop(key, None) is None or self.stopped.is_set()
            if broken:
                raise TimeoutError("timed out") from None

    def _look(self) -> None:
        """Shut down sockets whose deadline has passed. End if nothing is waiting."""
        while True:
            time.sleep(LOOK_S)
            with self._lock:
                now = time.monotonic()
                for key, (sock, until) in list(self._waits.items()):
                    if now > until:
                        del self._waits[key]
                        _break(sock)
                if not self._waits:
                    self._looking = False
                    return


class _Watched:
    """Mix-in for connections of urllib3."""

    _dns_host: str
    _address = ""  # of the peer, if it was checked

    def __init__(self, *args: Any, watch: Watch, reach: Reach | None, home: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch, self._reach, self._home = watch, reach, home

    def getresponse(self) -> Any:
        """Return the response; waiting for its head has a deadline."""
        assert isinstance(self, HTTPConnection)
        response = self._watch.head(self)
        # Only after a response: an address that the name resolved to, but that is silent, need not be the registry.
        if self._home and self._reach is not None and self._address:
            self._reach.arrived(self._address)
        return response

    def _new_conn(self) -> socket.socket:
        """Resolve the name once, choose among its addresses, and connect to those."""
        assert isinstance(self, HTTPConnection)
        connect = HTTPConnection._new_conn
        if self._reach is None:
            return connect(self)
        name, port = self._dns_host, self.port or 0
        addresses = self._reach.choose(name.strip("[]"), port, _resolved(self, name.strip("[]")), home=self._home)
        try:
            for number, address in enumerate(addresses):
                self._dns_host = address
                try:
                    sock = connect(self)
                except (NewConnectionError, ConnectTimeoutError):
                    if number + 1 == len(addresses):
                        raise
                    continue
                self._address = address
                return sock
        finally:
            self._dns_host = name
        raise NewConnectionError(self, "no address")


class _Connection(_Watched, HTTPConnection):
    pass


class _TLSConnection(_Watched, HTTPSConnection):
    pass


def _resolved(connection: HTTPConnection, name: str) -> list[str]:
    """Resolve `name`; best address first, IPv6 addresses with their zone."""
    try:
        results = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as err:
        raise NameResolutionError(name, connection, err) from err
    families = (socket.AF_INET, socket.AF_INET6)
    numeric = (
        socket.getnameinfo(place, socket.NI_NUMERICHOST)[0] for family, *_, place in results if family in families
    )
    return list(dict.fromkeys(numeric))


def _break(sock: socket.socket) -> None:
    """Wake all readers and writers of a socket. SSLSocket.shutdown would return bytes that are still encrypted."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
