"""The server: a thread for each connection, and limits for all that a client can make it hold or wait for."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest
from rootdisk.system.debug import debug
from runner.serve.blobs import Blob, is_right
from runner.serve.catalog import Catalog
from runner.serve.requests import HEAD_MAX_BYTES, Request, byte_range, is_allowed, parse, range_of, wanted

CONNECTIONS_MAX, OF_ADDRESS_MAX = 128, 64
HEAD_S = 10.0  # for a whole request to come, and between two
CHECK_S = 8.0  # for a blob to be checked that is asked for; clients give a mirror ten seconds, and take another then
SEND_S = 60.0  # for a client to take a piece
_REASONS = {200: "OK", 206: "Partial Content", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found",
            405: "Method Not Allowed", 416: "Range Not Satisfiable"}  # fmt: skip
_CODES = {401: "UNAUTHORIZED", 404: "NAME_UNKNOWN", 405: "UNSUPPORTED"}


class Server:
    """Serves the store of `catalog` on `listener`; with `token` only to those who have it, with `tls` over TLS."""

    def __init__(
        self, catalog: Catalog, listener: socket.socket, token: bytes | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._catalog, self._listener, self._token, self._tls = catalog, listener, token, tls
        self._lock = threading.Lock()
        self._connections: Counter[str] = Counter()
        self._checks: dict[Digest, threading.Event] = {}
        self._checking, self._checking_asked = threading.Lock(), threading.Lock()
        self._right: dict[Digest, bool] = {}

    def run(self) -> None:
        """Serve until the listener is closed. Meanwhile blobs are checked before anybody asks for them."""
        threading.Thread(target=self._check_known, daemon=True).start()
        while True:
            try:
                sock, address = self._listener.accept()
            except ConnectionError:
                continue
            except OSError:
                if self._listener.fileno() < 0:
                    return
                time.sleep(0.2)  # no descriptor is free
                continue
            host = str(address[0])
            with self._lock:
                is_full = self._connections.total() >= CONNECTIONS_MAX or self._connections[host] >= OF_ADDRESS_MAX
                self._connections[host] += not is_full
            if is_full or not _started(self._connection, sock, host):
                sock.close()
                if not is_full:
                    self._forget(host)

    def _connection(self, sock: socket.socket, host: str) -> None:
        try:
            sock.settimeout(HEAD_S)
            with contextlib.ExitStack() as stack:
                stack.enter_context(sock)
                if self._tls is not None:
                    tls = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                    sock = stack.enter_context(tls)
                    _shake_hands(tls)
                self._serve(sock)
        except (OSError, ValueError, RootdiskError) as err:  # ssl.SSLError is an OSError
            debug(f"{host}: {err}")
        finally:
            self._forget(host)

    def _forget(self, host: str) -> None:
        """Count a connection of `host` less."""
        with self._lock:
            self._connections[host] -= 1
            self._connections += Counter()  # forgets addresses without connections

    def _serve(self, sock: socket.socket) -> None:
        """Answer the requests of a connection, one after another."""
        rest = b""
        while True:
            head, rest = _read_head(sock, rest)
            if head is None:
                return
            request = parse(head)
            sock.settimeout(SEND_S)
            if request is None:
                _send(sock, 400, {"Connection": "close"})
                return
            self._answer(sock, request)
            if not request.keeps_alive:
                return

    def _answer(self, sock: socket.socket, request: Request) -> None:
        if not is_allowed(request.headers, self._token):
            _send(sock, 401, {"WWW-Authenticate": 'Basic realm="runner"'}, request)
            return
        if request.method not in ("GET", "HEAD"):
            _send(sock, 405, {"Allow": "GET, HEAD"}, request)
            return
        if request.path in ("/v2/", "/v2"):
            _send(sock, 200, {"Content-Type": "application/json"}, request, b"{}")
            return
        blob = self._find(request)
        if blob is None:
            _send(sock, 404, {}, request)
            return
        self._send_blob(sock, request, blob)

    def _find(self, request: Request) -> Blob | None:
        asked = wanted(request.path)
        repository = self._catalog.find(asked.name, request.registry) if asked else None
        if asked is None or repository is None:
            return None
        digest = Digest.parse(asked.digest)
        blob = (repository.manifests if asked.kind == "manifests" else repository.blobs).get(digest)
        is_part = bool(range_of(request))
        return blob if blob is not None and self._may_send(blob, is_part=is_part) else None

    def _may_send(self, blob: Blob, *, is_part: bool) -> bool:
        """Return whether a blob is what its digest says, as soon as that is known. After CHECK_S it is not there yet.

        Who asks for a part cannot compare that with the digest of the whole, and so has other digests for it. It gets the part
        at once: a frame that does not have the writer's length ends the answer.
        """
        digest = blob.descriptor.digest
        with self._lock:
            check = self._checks.get(digest)
            is_new = check is None
            check = check or self._checks.setdefault(digest, threading.Event())
        if is_new and not _started(self._check, blob, check, self._checking_asked):
            with self._lock:
                del self._checks[digest]
            return False
        if not is_part:
            check.wait(CHECK_S)
        return self._right.get(digest, is_part)

    def _check(self, blob: Blob, done: threading.Event, turn: threading.Lock) -> None:
        """Make the whole of a blob once, one at a time of those that are asked for, and one of the others.

        One that is not there is looked for again.
        """
        digest = blob.descriptor.digest
        try:
            with turn:
                self._right[digest] = is_right(blob)
        except FileNotFoundError:
            with self._lock:
                del self._checks[digest]
        done.set()

    def _check_known(self) -> None:
        """Check what the store has now. What it gets later is checked when it is asked for."""
        for blob in self._catalog.blobs():
            with self._lock:
                is_known = blob.descriptor.digest in self._checks
                check = self._checks.setdefault(blob.descriptor.digest, threading.Event())
            if not is_known:
                self._check(blob, check, self._checking)

    def _send_blob(self, sock: socket.socket, request: Request, blob: Blob) -> None:
        descriptor = blob.descriptor
        headers = {"Docker-Content-Digest": str(descriptor.digest), "Accept-Ranges": "bytes"}
        headers["Content-Type"] = descriptor.media_type
        part = range_of(request)
        asked = byte_range(part, descriptor.size)
        if asked is None:
            _send(sock, 416, {"Content-Range": f"bytes */{descriptor.size}"}, request)
            return
        start, end = asked
        status = 206 if part else 200
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{descriptor.size}"
        headers["Content-Length"] = str(end - start)
        pieces = _exactly(blob.read(start, end), end - start) if request.method == "GET" else iter(())
        try:
            first = next(pieces, b"")
        except (OSError, ValueError, RootdiskError):  # it is still being fetched, or this zstd is another
            _send(sock, 404, {}, request)
            return
        sock.sendall(_head(status, headers) + first)
        for piece in pieces:
            sock.sendall(piece)


def _started(action: Callable[..., None], *given: object) -> bool:
    """Run an action in a thread. Return False if this host allows no other one now."""
    try:
        threading.Thread(target=action, args=given, daemon=True).start()
    except RuntimeError:
        return False
    return True


def _shake_hands(tls: ssl.SSLSocket) -> None:
    """Do the TLS handshake; all of it has HEAD_S seconds, however slowly its bytes come."""
    # Of the socket below: SSLSocket.shutdown would go on without TLS.
    timer = threading.Timer(HEAD_S, socket.socket.shutdown, (tls, socket.SHUT_RD))
    timer.start()
    try:
        tls.do_handshake()
    finally:
        timer.cancel()


def _read_head(sock: socket.socket, data: bytes) -> tuple[bytes | None, bytes]:
    """Read up to an empty line; None at the end. All of it has HEAD_S seconds."""
    deadline = time.monotonic() + HEAD_S
    while b"\r\n\r\n" not in data:
        if data and not b"A" <= data[:1] <= b"Z":  # no method: TLS, whose client waits for an answer
            return data, b""
        left = deadline - time.monotonic()
        if left <= 0 or len(data) > HEAD_MAX_BYTES:
            return None, b""
        sock.settimeout(left)
        piece = sock.recv(4096)
        if not piece:
            return None, b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _exactly(pieces: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Yield `pieces`; ValueError, which ends the connection, if they are not `count` bytes."""
    for piece in pieces:
        count -= len(piece)
        yield piece
    if count:
        raise ValueError("the store has changed")


def _head(status: int, headers: dict[str, str]) -> bytes:
    every = {"Docker-Distribution-Api-Version": "registry/2.0", **headers}
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in every.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _send(
    sock: socket.socket, status: int, headers: dict[str, str], request: Request | None = None, body: bytes = b""
) -> None:
    """Send an answer without a blob; an error has a body as the distribution-spec says."""
    if status >= 400:
        body = json.dumps({"errors": [{"code": _CODES.get(status, "UNKNOWN"), "message": _REASONS[status]}]}).encode()
        headers = {**headers, "Content-Type": "application/json"}
    head = _head(status, {**headers, "Content-Length": str(len(body))})
    sock.sendall(head + (b"" if request is not None and request.method == "HEAD" else body))
