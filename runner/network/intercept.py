"""TLS that ends in the keeper: with the program as the host of a secret, and with that host as the program.

The program's first message has to ask for that host. The host's certificate is checked before a byte of a request is sent.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import NamedTuple

from rootdisk.network.hosts import Host
from rootdisk.registry.certificates import load_authorities
from runner.network import http, tls
from runner.network.exchange import Exchange, ExchangeFilter
from runner.network.guards import Failure, TlsGuard, Unusable

_HELD_MAX = http.HEAD_MAX  # bytes of the program that were not sent yet, and as many that were not read yet
_READ_BYTES = 64 << 10


class Contexts(NamedTuple):
    """Settings of TLS to both sides."""

    program: ssl.SSLContext
    host: ssl.SSLContext


def contexts(server: bytes, ca_file: str | None) -> Contexts:
    """Return the settings: `server` is PEM with key and certificate, `ca_file` is trusted beside this host's authorities.

    Raises:
        BadInput: `ca_file` is not one.
    """
    program = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    program.minimum_version = ssl.TLSVersion.TLSv1_2
    program.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    program.num_tickets = 0
    program.set_alpn_protocols(["http/1.1"])
    fd = os.memfd_create("server.pem")  # load_cert_chain reads files only, and no file is to have a key
    try:
        os.write(fd, server)
        program.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    host = ssl.create_default_context()
    host.options |= ssl.OP_NO_RENEGOTIATION
    host.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        load_authorities(host, Path(ca_file), "--ca-file")
    return Contexts(program, host)


class _Side:
    """TLS with one of the two sides, over bytes in memory."""

    def __init__(self, context: ssl.SSLContext, host: str | None = None) -> None:
        self.incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self.incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self.is_ready = False
        self.is_ended = False  # it has said that nothing more comes

    def shake(self) -> None:
        """Continue the handshake; ssl.SSLError if it fails."""
        if not self.is_ready:
            try:
                self._tls.do_handshake()
                self.is_ready = True
            except ssl.SSLWantReadError:
                pass

    def read(self) -> bytes:
        """Return what has come, b"" if there is nothing."""
        if not self.is_ready or self.is_ended:
            return b""
        try:
            data = self._tls.read(_READ_BYTES)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLZeroReturnError:
            data = b""
        self.is_ended = not data
        return data

    def write(self, data: bytes | bytearray) -> None:
        """Send all of it."""
        if data:
            self._tls.write(data)

    def end(self) -> None:
        """Say that nothing more comes."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:  # the other side has not said it
            pass

    def out(self) -> bytes:
        """Return bytes for the wire."""
        return self._outgoing.read()


class TlsFilter(ExchangeFilter):
    """A connection to the host of a secret, over TLS."""

    is_open = False

    def __init__(self, host: Host, exchange: Exchange, contexts: Contexts) -> None:
        assert isinstance(host, str)
        super().__init__(exchange)
        self._hello = TlsGuard(host)
        self._program = _Side(contexts.program)
        self._host = _Side(contexts.host, host)
        self._held = bytearray()  # of the program, not sent yet
        self._failure: Unusable | None = None  # of the host

    @property
    def is_holding(self) -> bool:
        """True if bytes of the program wait for the host to be ready, or for its answers."""
        return self._hello.is_open and (not self._host.is_ready or super().is_holding)

    def feed(self, data: bytearray, limit: int) -> bytes:
        """Take bytes of the program from `data`, and return bytes for the host.

        Raises:
            Refused: A request breaks a rule.
            Unusable: TLS fails with one of both.
        """
        if not self._hello.is_open:
            self._program.incoming.write(self._hello.feed(data, limit))
            if not self._hello.is_open:
                return b""
        elif self._program.incoming.pending < _HELD_MAX and len(self._held) < _HELD_MAX:
            self._program.incoming.write(data[:limit])
            del data[:limit]
        self._shake()
        while len(self._held) < _HELD_MAX and (piece := self._read_program()):
            self._held += piece
        if self._host.is_ready:
            self._host.write(self._exchange.requests.feed(self._held, limit))
        return self._host.out()

    def _read_program(self) -> bytes:
        try:
            return self._program.read()
        except ssl.SSLError as err:
            raise Unusable(f"TLS with the program failed: {_reason(err)}") from err

    def _shake(self) -> None:
        try:
            self._program.shake()
        except ssl.SSLError as err:
            self.for_guest += self._program.out()
            raise Unusable(
                f"the program refuses the certificate of the sandbox's own authority, or speaks other TLS: {_reason(err)}"
            ) from err
        self.for_guest += self._program.out()
        if self._failure is None:
            try:
                self._host.shake()
            except ssl.SSLError as err:  # CertificateError is one
                self._failure = Unusable(f"TLS with the host failed: {_reason(err)}")
        if self._failure is not None and self._program.is_ready:  # before, the program could not be told
            raise self._failure

    def back(self, data: bytes) -> None:
        """Take bytes of the host: what the program gets is added to `for_guest`."""
        self._host.incoming.write(data)
        self._shake()
        try:
            while piece := self._host.read():
                self._program.write(self._exchange.responses.feed(piece))
        except ssl.SSLError as err:
            raise Unusable(f"TLS with the host failed: {_reason(err)}") from err
        self.for_guest += self._program.out()

    def end(self) -> bytes:
        """Return that nothing more comes."""
        self._host.end()
        return self._host.out()

    @property
    def is_untold(self) -> bool:
        """True if TLS with the host failed before TLS with the program was ready, so that it cannot be told yet."""
        return self._failure is not None and not self._program.is_ready

    def finish(self) -> None:
        """Add what is left. A body that ends with the connection is whole only if the host says so within TLS."""
        if self._failure is not None:
            raise self._failure
        if self._program.is_ready:
            self._program.write(self._exchange.responses.finish())
            if self._host.is_ended:
                self._program.end()
            self.for_guest += self._program.out()

    def refuse(self, failure: Failure, text: str) -> bytes:
        """Return a response, if none is on its way already; before TLS is ready an alert."""
        if not self._hello.is_open:
            return tls.ACCESS_DENIED
        if self._program.is_ready:
            self._program.write(self._exchange.answer(failure, text))
            self._program.end()
        return self._program.out()


def _reason(err: ssl.SSLError) -> str:
    return str(getattr(err, "verify_message", "") or err.reason or "it was cut off").replace("_", " ").lower()
