"""A client's end of a session: a program in a sandbox, with this process's standard input, output and errors."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator

from rootdisk.errors import RootdiskError
from rootdisk.system import process
from rootdisk.system.stdio import write_all
from rootdisk.text import error_text
from runner.channel import messages
from runner.channel.messages import WINDOW, Decoder, GuestError, frame, frame_number, number

PATIENCE_S = 10.0  # with a program, or a guest that stands still, after a signal
_CTRL_C = b"\3"


class Lost(RootdiskError):
    """The keeper is gone, and did not say how the program ended."""


class Interrupted(BaseException):
    """A request to end this process at once: a second signal, or no end in time after the first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


# Forwarded like the others, but the program is not expected to end. Signals of job control are for this process itself.
_PASSED = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Signals:
    """Handles signals: they are forwarded to the program, which should end by SIGINT, SIGTERM and SIGHUP.

    This process ends if it does not, in `patience_s`; at once if such a signal comes again, or another and nothing has come from
    the sandbox in between. After a SIGINT a sandbox that says something is given more time: a program may go on after it, as a
    Python prompt does. A sandbox's main program (`is_main`) may read its configuration again by a SIGHUP, so that nothing is
    expected of it; but if the terminal is gone, it is stopped. Nothing is expected after a SIGQUIT either, but that one that
    follows another signal, or in a command another SIGQUIT, without a word from the sandbox in between ends this process.
    """

    def __init__(self, hand_on: Callable[[int], None], patience_s: float, is_main: bool) -> None:
        self._hand_on = hand_on
        self._patience_s = patience_s
        self._is_main = is_main
        self._given: set[int] = set()
        self._has_quit = False
        self._last: int | None = None
        self._lived = False
        self._size = window()
        self._has_terminal = _has_terminal()

    def lives(self) -> None:
        """Note that something was received from the sandbox."""
        self._lived = True

    def signal(self, number: int, _: object) -> None:
        """Forward a signal, or end this process, as the class says."""
        if number == signal.SIGWINCH and self._size != (size := window()):
            self._size = size  # the window was resized
        elif number == signal.SIGQUIT and not self._lived and (self._given or self._has_quit):
            raise Interrupted(number)
        elif number in _PASSED or (number == signal.SIGHUP and self._is_main and not self.has_hung_up()):
            if number == signal.SIGQUIT and not self._is_main:
                self._has_quit, self._lived = True, False
            self._hand_on(number)
        elif number in self._given or (self._given and not self._lived):
            raise Interrupted(number)
        else:
            self._given.add(number)
            self._last, self._lived = number, False
            signal.setitimer(signal.ITIMER_REAL, self._patience_s)
            self._hand_on(signal.SIGTERM if number == signal.SIGHUP and self._is_main else number)

    def has_hung_up(self) -> bool:
        """Return whether the terminal that this process was started from is gone."""
        return self._has_terminal and not _has_terminal()

    def alarm(self, *_: object) -> None:
        """End this process: the time after a signal is over, and it was not a SIGINT to a sandbox that still talks."""
        number, self._last = self._last, None
        self._given.clear()
        if number is not None and not (number == signal.SIGINT and self._lived):
            raise Interrupted(number)


def _has_terminal() -> bool:
    """Return whether this process has a controlling terminal that works."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        return False
    return True


class Session:
    """A program that runs over `sock`, a connection to the keeper."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._out = bytearray()
        self._decoder = Decoder()
        self._credit = WINDOW  # bytes of input that the guest still accepts
        self._ready = False
        self._status: int | None = None
        self._ended = False
        self._held: list[int] = []  # signals for a program that has not started
        self._signals: _Signals | None = None
        self._break_at: float | None = None  # since when a Ctrl-C that was typed has had no answer

    @property
    def is_ready(self) -> bool:
        """Return whether the program has started."""
        return self._ready

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Queue a frame for the keeper."""
        self._out += frame(kind, payload)

    def send_signal(self, number: int) -> None:
        """Send a signal to the program as soon as it has started."""
        if self._ready:
            self.send(messages.SIGNAL, number.to_bytes(4, "little"))
        elif number not in self._held:
            self._held.append(number)

    def run(
        self,
        *,
        stdin: int | None,
        terminal: bool,
        on_ready: Callable[[], None] | None = None,
        on_signal: Callable[[int], None] | None = None,
        patience_s: float = PATIENCE_S,
        is_main: bool = False,
        ready: bool = False,
    ) -> int:
        """Forward input, output and signals until the program ends; return its exit status.

        With `ready`, input may be sent before READY is received. `on_signal` forwards a signal; _Signals says which signals
        end this process instead, with status 128 plus their number.

        Raises:
            GuestError: the sandbox failed; the reason is in the message.
            Lost: the keeper is gone.
        """
        self._signals = _Signals(on_signal, patience_s, is_main) if on_signal is not None else None
        try:
            return self._run(stdin, terminal, on_ready, ready)
        except Interrupted as stopped:
            return 128 + stopped.number

    def _run(self, stdin: int | None, terminal: bool, on_ready: Callable[[], None] | None, ready: bool) -> int:
        with (
            _handled(self._signals, self._resize if terminal else None) as wake,
            selectors.DefaultSelector() as selector,
        ):
            self._ready = ready
            selector.register(self._sock, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            if terminal:
                self._resize()
            while not self._ended:
                self._flush()
                selector.modify(self._sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0))
                plain = self._watch(stdin, selector)
                found = {key.fd for key, mask in selector.select(0 if plain else None) if mask & selectors.EVENT_READ}
                if wake.fileno() in found:
                    wake.recv(64)  # the handlers have run
                if self._sock.fileno() in found:
                    self._receive(on_ready)
                if stdin is not None and (plain or stdin in found):
                    stdin = self._input(stdin, selector, terminal)
        if self._status is None:
            raise Lost("the sandbox has ended", "runner ps -a")
        return self._status

    def _watch(self, stdin: int | None, selector: selectors.BaseSelector) -> bool:
        """Watch standard input while the guest accepts input. Return whether it is a file, which is read without waiting."""
        if stdin is None:
            return False
        if self._ready and self._credit > 0 and not self._out:
            try:
                selector.register(stdin, selectors.EVENT_READ)
            except KeyError:
                pass
            except PermissionError:  # epoll refuses files, which are always ready
                return True
        elif stdin in selector.get_map():
            selector.unregister(stdin)
        return False

    def _resize(self) -> None:
        self.send(messages.RESIZE, struct.pack("<HH", *window()))

    def _flush(self) -> None:
        while self._out:
            try:
                del self._out[: self._sock.send(self._out)]
            except BlockingIOError:
                return
            except OSError:  # reading says why
                self._out.clear()

    def _input(self, stdin: int, selector: selectors.BaseSelector, terminal: bool) -> int | None:
        try:
            data = os.read(stdin, min(self._credit, 64 << 10))
        except BlockingIOError:  # another process that shares it was faster
            return stdin
        if terminal and _CTRL_C in data:
            self._typed_break()
        self._credit -= len(data)
        self.send(messages.STDIN, data)
        if data:
            return stdin
        if stdin in selector.get_map():
            selector.unregister(stdin)
        return None

    def _typed_break(self) -> None:
        """A Ctrl-C goes to the program. If the first had no answer for a while, the next one ends this process."""
        now = time.monotonic()
        if self._break_at is None:
            self._break_at = now
        elif now >= self._break_at + PATIENCE_S:
            raise Interrupted(signal.SIGINT)

    def _receive(self, on_ready: Callable[[], None] | None) -> None:
        try:
            data = self._sock.recv(256 << 10)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended = True
        self._break_at = None
        if self._signals is not None:
            self._signals.lives()
        for kind, _, payload in self._decoder.feed(data):
            if kind in (messages.STDOUT, messages.STDERR):
                write_all(1 if kind == messages.STDOUT else 2, payload)
                self._out += frame_number(messages.CREDIT, len(payload))
            elif kind == messages.READY:
                self._ready = True
                for signal_number in self._held:
                    self.send_signal(signal_number)
                self._held.clear()
                if on_ready is not None:
                    on_ready()
            elif kind == messages.EXIT:
                self._status = number(payload) & 0xFF
            elif kind == messages.ERROR:
                raise GuestError(payload.decode(errors="replace"))
            elif kind == messages.CREDIT:
                self._credit = min(WINDOW, self._credit + number(payload))
            elif kind == messages.NOTICE:
                print(f"runner: {error_text(payload.decode(errors='replace'))}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _handled(signals: _Signals | None, on_resize: Callable[[], None] | None) -> Iterator[socket.socket]:
    """Install the handlers; yield a socket that becomes readable after a signal has been handled."""
    handlers: dict[signal.Signals, Callable[[int, object], None]] = {}
    if signals is not None:
        handlers.update(dict.fromkeys(process.heard(*_ENDING, *_PASSED), signals.signal))
        handlers[signal.SIGALRM] = signals.alarm
    if on_resize is not None:
        handlers[signal.SIGWINCH] = lambda *_: on_resize()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        fd = signal.set_wakeup_fd(theirs.fileno())
        before = {name: signal.signal(name, handler) for name, handler in handlers.items()}
        try:
            yield ours
        finally:
            if signals is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
            for name, former in before.items():
                signal.signal(name, former)
            signal.set_wakeup_fd(fd)


@contextlib.contextmanager
def raw_terminal(wanted: bool) -> Iterator[None]:
    """Put the terminal into raw mode, so that every key goes to the program."""
    if not wanted or not os.isatty(0):
        yield
        return
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSANOW)  # keep what was typed already: it is for the program
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)  # without waiting for output: that may take for ever


def window() -> tuple[int, int]:
    """Return the terminal's rows and columns."""
    try:
        rows, columns = struct.unpack("HHHH", fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8)))[:2]
    except (OSError, ValueError):
        return 24, 80
    return (rows or 24), (columns or 80)
