"""The process that keeps one sandbox: carries frames between the guest and the clients, and ends with the machine.

    guest ◀── channel ──▶ keeper ◀── socket pair ──▶ runner boot, in the foreground (session 0)
                             ▲ ◀───── control ──────▶ runner exec, cp (a session each), stop, kill, wait
    console ─▶ console.log ──┘──▶ output.log, of a detached sandbox's program

It hands payloads on as they are. How much may be under way is agreed between the two ends by CREDIT, so no client can
hold up another, and nothing is buffered here beyond that.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import time
from collections.abc import Iterator

from runner import frames, process
from runner.debug import debug
from runner.frames import PAYLOAD_MAX, WINDOW, Decoder, GuestError, frame, frame_number, number
from runner.machine import Vm
from runner.output import Log

STOP_S = 10  # what a program has to end by itself
GRACE_S = 5.0  # what its guest has beyond that
TIMED_OUT, KILLED = 124, 128 + signal.SIGKILL
PEERS_MAX = 128
_SIGHUP = 1


class Silent(Exception):
    """Nothing was heard of the machine at all."""


class Gone(Exception):
    """The client in whose foreground the sandbox ran has gone."""


class _Peer:
    """A client: another process of the same user."""

    def __init__(self, sock: socket.socket, session: int | None) -> None:
        self.sock = sock
        self.session = session  # the guest's number; None as long as it has asked for none
        self.decoder = Decoder(frames.FROM_CLIENT)
        self.out = bytearray()
        self.leaves = False  # when everything is sent
        self.waits = False  # for the sandbox's end
        sock.setblocking(False)


class Keeper:
    """One sandbox from its start to its program's end."""

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
    ) -> None:
        """`client` has session 0, or with an `output` log is only told when the program has started.

        `timeout_s` is how long the program may run, `silent_s` how long nothing may be heard at first.
        """
        self._vm = vm
        self._listener = listener
        self._console = console
        self._output = output
        self._guest_out = bytearray()
        self._decoder = Decoder()
        self._main: _Peer | None = _Peer(client, 0)
        self._peers = {client: self._main}
        self._sessions: dict[int, _Peer | None] = {}
        self._status: int | None = None
        start = time.monotonic()
        self._deadline = start + timeout_s if timeout_s else None
        self._silent_at = start + silent_s if silent_s else None
        self._kill_at: float | None = None
        vm.channel.setblocking(False)
        vm.console.setblocking(False)
        listener.setblocking(False)

    def run(self) -> int:
        """Until the program has ended: its exit status, TIMED_OUT or KILLED.

        GuestError with the guest's reason, or "" where the machine went without a word; Silent; Gone.
        """
        with self._signals() as wake, selectors.DefaultSelector() as selector:
            for sock in (wake, self._listener, self._vm.channel, self._vm.console):
                selector.register(sock, selectors.EVENT_READ)
            while self._status is None:
                self._look(selector)
                for key, mask in selector.select(self._wait()):
                    if mask & selectors.EVENT_READ:
                        self._read(key.fileobj, selector)  # type: ignore[arg-type]
                self._write(selector)
                self._check_times()
        return self._status

    def acknowledge(self) -> None:
        """Let the guest write everything back and power off."""
        self._guest_out += frame(frames.ACK)
        self._vm.channel.settimeout(GRACE_S)
        with contextlib.suppress(OSError):
            self._vm.channel.sendall(self._guest_out)

    def tell(self, status: int, error: str = "") -> None:
        """Tell every client how the sandbox has ended, after all that is for them; a blocked one is waited for."""
        for peer in self._peers.values():
            if peer is self._main or peer.waits:
                if error and not peer.waits:
                    peer.out += frame(frames.ERROR, error.encode())
                peer.out += frame_number(frames.EXIT, status)
            # Output of the program is never lost to a slow reader; one of exec's may go the way of its sandbox.
            peer.sock.settimeout(None if peer is self._main else GRACE_S)
            with contextlib.suppress(OSError):
                peer.sock.sendall(peer.out)

    def drain(self) -> None:
        """What the console still holds when the machine has ended: mostly why."""
        self._vm.console.settimeout(1)
        with contextlib.suppress(OSError):
            while data := self._vm.console.recv(64 << 10):
                self._console.write(data)

    def close(self) -> None:
        """Let all clients go."""
        for sock in self._peers:
            sock.close()
        self._peers.clear()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """A socket that becomes readable with SIGTERM, SIGINT or SIGHUP: they stop the sandbox."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            for name in process.heard(signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(name, lambda *_: None)
            signal.set_wakeup_fd(theirs.fileno())
            self._wake = ours
            try:
                yield ours
            finally:
                signal.set_wakeup_fd(-1)

    def _look(self, selector: selectors.BaseSelector) -> None:
        """Read from clients only while the guest takes what they send; write where there is something."""
        full = len(self._guest_out) > 4 * WINDOW
        wanted = [(self._vm.channel, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._guest_out else 0))]
        for peer in self._peers.values():
            wanted.append(
                (peer.sock, (0 if full else selectors.EVENT_READ) | (selectors.EVENT_WRITE if peer.out else 0))
            )
        for sock, events in wanted:
            key = selector.get_map().get(sock)
            if key is None and events:
                selector.register(sock, events)
            elif key is not None and not events:
                selector.unregister(sock)
            elif key is not None and key.events != events:
                selector.modify(sock, events)

    def _wait(self) -> float | None:
        ends = [end for end in (self._deadline, self._silent_at, self._kill_at) if end is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _check_times(self) -> None:
        now = time.monotonic()
        if self._status is not None:
            return
        if self._silent_at is not None and now >= self._silent_at:
            raise Silent
        if self._deadline is not None and now >= self._deadline:
            self._status = TIMED_OUT
        elif self._kill_at is not None and now >= self._kill_at:
            self._status = KILLED

    def _read(self, sock: socket.socket, selector: selectors.BaseSelector) -> None:
        if sock is self._listener:
            self._accept()
        elif sock is self._wake:
            sock.recv(64)
            self._stop(STOP_S)
        elif sock is self._vm.console:
            self._read_console(selector)
        elif sock is self._vm.channel:
            data = _receive(sock)
            if data == b"":
                raise GuestError("")
            self._silent_at = None if data else self._silent_at
            for kind, session, payload in self._decoder.feed(data or b""):
                self._from_guest(kind, session, payload)
        elif sock in self._peers:
            self._read_peer(self._peers[sock], selector)

    def _read_console(self, selector: selectors.BaseSelector) -> None:
        data = _receive(self._vm.console)
        if data == b"":
            selector.unregister(self._vm.console)
        elif data:
            self._silent_at = None
            self._console.write(data)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            if len(self._peers) < PEERS_MAX:
                self._peers[sock] = _Peer(sock, None)
            else:
                sock.close()

    def _read_peer(self, peer: _Peer, selector: selectors.BaseSelector) -> None:
        data = _receive(peer.sock)
        if data == b"":
            self._drop(peer, selector)
            return
        try:
            for kind, _, payload in peer.decoder.feed(data or b""):
                self._from_peer(peer, kind, payload)
        except GuestError:  # not one of our clients
            self._drop(peer, selector)

    def _drop(self, peer: _Peer, selector: selectors.BaseSelector) -> None:
        """A client has gone."""
        with contextlib.suppress(KeyError):
            selector.unregister(peer.sock)
        del self._peers[peer.sock]
        peer.sock.close()
        if peer is self._main:
            self._main = None
            if self._output is None:
                raise Gone
        elif peer.session is not None and self._sessions.get(peer.session) is peer:
            self._sessions[peer.session] = None  # the number is free when the guest says so
            self._guest_out += frame_number(frames.SIGNAL, _SIGHUP, peer.session)

    def _from_peer(self, peer: _Peer, kind: int, payload: bytes) -> None:
        if kind == frames.EXEC:
            peer.session = next(n for n in range(1, 1 << 16) if n not in self._sessions)
            self._sessions[peer.session] = peer
            self._guest_out += frame(kind, payload, peer.session)
        elif kind == frames.STOP:
            self._stop(number(payload))
        elif kind == frames.KILL:
            self._status = KILLED
        elif kind == frames.WAIT:
            peer.waits = True
        elif kind == frames.SIGNAL:
            self._guest_out += frame(kind, payload, peer.session or 0)
        elif peer.session is not None and not (peer is self._main and self._output is not None):
            self._guest_out += frame(kind, payload, peer.session)

    def _stop(self, seconds: int) -> None:
        """The stop signal now, SIGKILL after `seconds`, and the end of the machine if even that does not help."""
        self._guest_out += frame_number(frames.STOP, seconds)
        end = time.monotonic() + seconds + GRACE_S
        self._kill_at = end if self._kill_at is None else min(end, self._kill_at)

    def _from_guest(self, kind: int, session: int, payload: bytes) -> None:
        if kind == frames.LOG:
            debug(f"guest: {payload.decode(errors='replace')}")
        elif session:
            self._from_session(kind, session, payload)
        elif kind == frames.ERROR:
            raise GuestError(payload.decode(errors="replace"))
        elif kind == frames.EXIT:
            self._status = number(payload) & 0xFF
        elif kind == frames.READY:
            self._send(self._main, kind, payload)
            if self._main is not None and self._output is not None:
                self._main.leaves = True
        elif self._output is None:
            self._send(self._main, kind, payload)
        elif kind in (frames.STDOUT, frames.STDERR):
            self._output.write_frame(kind, payload)
            self._guest_out += frame_number(frames.CREDIT, len(payload))

    def _from_session(self, kind: int, session: int, payload: bytes) -> None:
        peer = self._sessions.get(session)
        if peer is not None:
            self._send(peer, kind, payload)
        elif kind in (frames.STDOUT, frames.STDERR):
            self._guest_out += frame_number(frames.CREDIT, len(payload), session)
        if kind in (frames.EXIT, frames.ERROR):
            self._sessions.pop(session, None)
            if peer is not None:
                peer.session = None
                peer.leaves = True

    def _send(self, peer: _Peer | None, kind: int, payload: bytes) -> None:
        if peer is None:
            return
        peer.out += frame(kind, payload)
        if len(peer.out) > WINDOW + 2 * PAYLOAD_MAX:
            raise GuestError("the guest sends more than it was allowed", "was it built by this rootdisk?")

    def _write(self, selector: selectors.BaseSelector) -> None:
        if self._guest_out:
            try:
                del self._guest_out[: self._vm.channel.send(self._guest_out)]
            except BlockingIOError:
                pass
            except OSError as err:
                raise GuestError("") from err
        for peer in list(self._peers.values()):
            try:
                if peer.out:
                    del peer.out[: peer.sock.send(peer.out)]
            except BlockingIOError:
                continue
            except OSError:
                self._drop(peer, selector)
                continue
            if peer.leaves and not peer.out:
                if peer is self._main:
                    self._main = None
                selector.unregister(peer.sock)
                del self._peers[peer.sock]
                peer.sock.close()


def _receive(sock: socket.socket) -> bytes | None:
    """What has come; None for nothing, b"" at the end."""
    try:
        return sock.recv(256 << 10)
    except BlockingIOError:
        return None
    except OSError:
        return b""
