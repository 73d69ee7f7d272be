"""The keeper as a process, with real sockets: the test is its guest, its machine's output and its clients."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rootdisk.errors import RootdiskError
from runner.channel import messages
from runner.channel.messages import WINDOW, Decoder, frame, frame_number
from runner.sandbox.keeper.room import Monitor
from runner.sandbox.keeper.serving import MACHINE_LOG_BYTES
from runner.sandbox.output.logs import MISSED, Log, Reader, has_log
from runner.sandbox.routing.connections import CLIENTS_MAX, FULL, VISITORS_MAX
from tests.support.keepers import LIMIT_S, Running
from tests.support.processes import resident_bytes
from tests.support.waiting import until


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    with contextlib.ExitStack() as stack:

        def started(**options: object) -> Running:
            running = Running(tmp_path, **options)  # type: ignore[arg-type]
            stack.callback(running.close)
            return running

        yield started


class Machine(threading.Thread):
    """A guest that keeps to the rules: each command sends as many bytes as it is asked for, and ends."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self._left: dict[int, int] = {}
        self._credit: dict[int, int] = {}

    def run(self) -> None:
        decoder = Decoder(range(1, 64))
        with contextlib.suppress(OSError):
            self._sock.sendall(frame_number(messages.READY, 2))
            while data := self._sock.recv(1 << 16):
                for kind, session, payload in decoder.feed(data):
                    if kind == messages.EXEC:
                        self._left[session], self._credit[session] = int(payload), WINDOW
                    elif kind == messages.CREDIT and session in self._credit:
                        self._credit[session] += messages.number(payload)
                    elif kind == messages.SIGNAL and session in self._left:
                        self._left[session] = 0
                self._write()

    def _write(self) -> None:
        for session in list(self._left):
            while size := min(self._left[session], self._credit[session], 32 << 10):
                self._left[session] -= size
                self._credit[session] -= size
                self._sock.sendall(frame(messages.STDOUT, bytes(size), session))
            if not self._left[session]:
                del self._left[session], self._credit[session]
                self._sock.sendall(frame_number(messages.EXIT, session & 0x7F, session))


def asked(running: Running, size: int) -> socket.socket:
    sock = running.connect()
    sock.sendall(frame(messages.EXEC, b"%d" % size))
    return sock


def received(sock: socket.socket) -> tuple[int, int | None, bytes]:
    """Of a session: bytes of output, exit status, text of an error; its client grants what it has read."""
    decoder, count, status, text = Decoder(), 0, None, b""
    # What it has not read of our credit when it closes is a reset, after all that it has sent.
    with sock, contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1 << 16):
            for kind, _, payload in decoder.feed(data):
                if kind == messages.STDOUT:
                    count += len(payload)
                    with contextlib.suppress(OSError):
                        sock.sendall(frame_number(messages.CREDIT, len(payload)))
                elif kind == messages.EXIT:
                    status = messages.number(payload)
                elif kind == messages.ERROR:
                    text = payload
    return count, status, text


def test_parallel_sessions_that_end(start: Callable[..., Running]) -> None:
    """A session that had ended while its client was not read ended the sandbox."""
    running = start()
    Machine(running.guest).start()
    sizes = [4 << 20] * 8 + [0] * 30 + [WINDOW] * 4
    threads: list[threading.Thread] = []
    results: dict[int, bytes] = {}
    for number, size in enumerate(sizes):
        sock = asked(running, size)
        thread = threading.Thread(target=lambda n=number, s=sock: results.__setitem__(n, received(s)))  # type: ignore[assignment]
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join(LIMIT_S)
    assert running.lives()
    assert [results[number][0] for number in range(len(sizes))] == sizes
    assert all(results[number][1] is not None for number in range(len(sizes)))


@pytest.mark.parametrize(
    "flood",
    [
        frame(messages.STDOUT, bytes(100), 77),
        frame_number(messages.CREDIT, 1, 77) + frame(99, bytes(100), 3),
        frame(messages.STDOUT, bytes(100)),
        frame(messages.LOG, b"\x1b[2J" * 10),
        b"\xff" * 4096,
    ],
    ids=["sessions of nobody", "credit and unknown kinds", "the main program", "text", "no frames"],
)
def test_a_guest_that_floods_is_bounded(start: Callable[..., Running], flood: bytes) -> None:
    """Its answers to sessions that nobody has took 273 MB in 40 s."""
    running = start(detached=True)
    before = resident_bytes(running.pid)
    data = flood * ((1 << 20) // len(flood))
    running.guest.settimeout(0.5)
    for _ in range(30):
        with contextlib.suppress(TimeoutError):
            running.guest.sendall(data)
    assert running.lives()
    assert resident_bytes(running.pid) < before + (8 << 20)
    with running.connect() as sock:
        sock.sendall(frame(messages.KILL))
    assert running.ended() == 137


def content(log: Path) -> bytes:
    """What is in it, or nothing: for a moment between two files there is none."""
    try:
        return log.read_bytes()
    except FileNotFoundError:
        return b""


def test_logs_of_the_machine_are_bounded(start: Callable[..., Running], tmp_path: Path) -> None:
    """QEMU says whatever its guest makes it say."""
    running = start(talk="yes 'virtio-serial-bus: Unexpected port id' | head -c 50000000; echo last; exec sleep 600")
    log = tmp_path / "machine.log"
    until(lambda: content(log).endswith(b"last\n"), LIMIT_S)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir() if "machine" in path.name}
    assert sizes.keys() == {"machine.log", "machine.log.old"}
    assert max(sizes.values()) <= MACHINE_LOG_BYTES + (64 << 10)
    assert running.lives()


def test_a_full_house(start: Callable[..., Running]) -> None:
    running = start()
    inside = [asked(running, 1 << 30) for _ in range(CLIENTS_MAX)]
    count, status, text = received(asked(running, 1))
    assert (count, status, text) == (0, None, FULL.encode())
    idle = [running.connect() for _ in range(VISITORS_MAX + 10)]
    with running.connect() as sock:
        sock.sendall(frame_number(messages.STOP, 0))
    decoder = Decoder(range(1, 64))
    kinds: set[int] = set()
    while messages.STOP not in kinds:
        kinds |= {kind for kind, _, _ in decoder.feed(running.guest.recv(1 << 16))}
    with running.connect() as sock:
        sock.sendall(frame(messages.KILL))
    assert running.ended() == 137
    for sock in (*inside, *idle):
        sock.close()


def test_clients_that_go_at_any_time(start: Callable[..., Running]) -> None:
    running = start()
    Machine(running.guest).start()
    for number in range(60):
        sock = asked(running, 1 << 20)
        if number % 3:
            sock.recv(1000)
        if number % 2:
            sock.sendall(frame(messages.STDIN, bytes(1000))[: number * 10])
        sock.close()
    assert received(asked(running, 1000))[0] == 1000
    assert running.lives()


@pytest.mark.parametrize("timeout_s", [30 * 86400.0, 1e9, 1e300])
def test_time_outs_of_any_size(start: Callable[..., Running], timeout_s: float) -> None:
    running = start(timeout_s=timeout_s)
    running.guest.sendall(frame_number(messages.READY, 1))
    running.guest.sendall(frame_number(messages.EXIT, 5))
    assert running.ended() == 5


def test_a_log_on_a_full_disk_is_whole_afterwards(tmp_path: Path) -> None:
    """By the limit of a file's size, which fails as a full disk does: with a part that is written."""
    import resource

    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = Log(tmp_path / "output.log")
        log.write_frame(messages.STDOUT, b"before")
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        log.write_frame(messages.STDOUT, bytes(1000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        log.write_frame(messages.STDOUT, b"after")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    found = list(Reader(tmp_path / "output.log").frames())
    assert [payload for kind, payload in found if kind == messages.STDOUT] == [b"before", b"after"]
    assert b"1008 bytes of output are missing" in found[1][1]


def test_a_log_that_grows_faster_than_it_is_read(tmp_path: Path) -> None:
    """All that was there is read, and then it ends; what has come meanwhile is for the next call."""
    log = Log(tmp_path / "output.log", 1 << 20)
    for number in range(25):  # the first are in a file that is no longer there
        log.write_frame(messages.STDOUT, b"%d" % number + bytes(60_000))
    reader = Reader(tmp_path / "output.log")
    found = []
    for _, data in reader.frames():
        found.append(data)
        for _ in range(3):
            log.write_frame(messages.STDOUT, b"later")
        assert len(found) < 1000
    whole = [data for data in found if data != b"later"]
    assert [data.rstrip(b"\0") for data in whole][-1] == b"24"
    assert list(reader.frames())


@pytest.mark.parametrize("files", [0, 1, 2, 3, 4, 9, 254, 256, 257, 300, 600])
def test_files_that_come_and_go_between_two_looks(tmp_path: Path, files: int) -> None:
    """What is still there is read in its order. What is not is missing, and that is said at the place where it was."""
    log = Log(tmp_path / "output.log", 100)
    for name in (b"before", b"read"):
        log.write_frame(messages.STDOUT, name + bytes(60))
    reader = Reader(tmp_path / "output.log")
    assert len(list(reader.frames())) == 2
    for number in range(files):
        log.write_frame(messages.STDOUT, b"%d" % number + bytes(60))
    found = [data.rstrip(b"\0") for _, data in reader.frames()]
    kept = [b"%d" % number for number in range(files)[-2:]]
    # Numbers begin again after 255 files: then nothing is said.
    assert found == ([MISSED, *kept] if files > 2 and files % 255 != 2 else kept)
    log.write_frame(messages.STDOUT, b"last")
    assert list(reader.frames()) == [(messages.STDOUT, b"last")]


def test_a_log_that_goes_on_after_a_restart_keeps_its_numbers(tmp_path: Path) -> None:
    """A file of an older runner has none."""
    path = tmp_path / "output.log"
    path.write_bytes(messages.frame(messages.STDOUT, b"older" + bytes(90)))
    reader = Reader(path)
    assert list(reader.frames())
    for number in range(4):
        Log(path, 100).write_frame(messages.STDOUT, b"%d" % number + bytes(60))
        found = [data.rstrip(b"\0") for _, data in reader.frames()]
        assert found == [b"%d" % number]
    assert path.read_bytes()[:8] == b"\0\0\0\0\4\0\0\0"


def test_a_console_that_is_replaced_twice_is_read_whole(tmp_path: Path) -> None:
    """It has no frames, so no numbers: its bytes are as the machine has written them."""
    log = Log(tmp_path / "console.log", 100)
    log.write(b"0" * 60)
    reader = Reader(tmp_path / "console.log")
    assert b"".join(reader.data()) == b"0" * 60
    log.write(b"1" * 60)
    log.write(b"2" * 60)
    assert b"".join(reader.data()) == b"1" * 60 + b"2" * 60
    assert Reader(tmp_path / "nothing").is_open is False


def test_a_log_is_found_while_its_files_are_replaced(tmp_path: Path) -> None:
    """For a moment there is the older file alone, and the next moment another one has its name."""
    log = Log(tmp_path / "output.log", 100)
    log.write_frame(messages.STDOUT, bytes(60))
    is_over = threading.Event()

    def replace() -> None:
        while not is_over.is_set():
            log.write_frame(messages.STDOUT, bytes(60))

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(2000):
            assert has_log(log.path)
            assert Reader(log.path).is_open
    finally:
        is_over.set()
        writer.join()


def test_a_log_that_is_none_is_one_error(tmp_path: Path) -> None:
    """A foreign file of a terabyte is not read into memory in search of the end of a frame."""
    path = tmp_path / "output.log"
    Log(path).write_frame(messages.STDOUT, b"first")
    with path.open("ab") as file:
        file.write(b"\xff" * 100)
        file.truncate(1 << 40)
    found = Reader(path).frames()
    assert next(found) == (messages.STDOUT, b"first")
    with pytest.raises(RootdiskError, match=r"output\.log is damaged"):
        next(found)


def test_a_guest_hears_that_it_may_power_off(start: Callable[..., Running]) -> None:
    """Also one whose commands go on writing: it waits for its output to go before it listens."""
    running = start(acknowledges=True)
    with asked(running, 1):
        running.guest.sendall(frame_number(messages.EXIT, 3))
        running.guest.sendall(frame(messages.STDOUT, bytes(1000), 1) * 5000)
        decoder = Decoder(range(1, 64))
        kinds: list[int] = []
        while messages.ACK not in kinds:
            kinds += [kind for kind, _, _ in decoder.feed(running.guest.recv(1 << 16))]
        running.guest.close()
    assert running.ended() == 3


def test_a_monitor_that_says_anything() -> None:
    stop = b'{"timestamp": {}, "event": "BLOCK_IO_ERROR", "data": {"action": "stop", "nospace": true}}\r\n'
    monitor = Monitor()
    for data in (
        b'{"QMP": {}}\r\n',
        b"\xff\n[]\n1\nnull\n{}\n",
        b'{"event": "BLOCK_IO_ERROR"}\n',
        b"[" * 100_000 + b"\n",
    ):
        assert not monitor.feed(data)
    assert not monitor.feed(stop[:30])
    assert monitor.feed(stop[30:])
    for _ in range(100):
        monitor.feed(bytes(1 << 16))
    assert sum(map(len, (monitor.out, monitor._line))) < 200_000


def test_a_helper_that_ends_is_said(start: Callable[..., Running]) -> None:
    running = start()
    running.client.settimeout(LIMIT_S)
    running.helper.kill()
    ((kind, _, text),) = Decoder().feed(running.client.recv(1000))
    assert kind == messages.NOTICE
    assert text.startswith(b"the network is lost")
    assert running.lives()
