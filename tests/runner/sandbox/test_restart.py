"""Restart policies: which end is followed by another start, and when."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from rootdisk.errors import BadInput
from runner.channel import messages
from runner.sandbox import orders
from runner.sandbox.keeper.restart import GOOD_S, Policy, Restarts, rest
from runner.sandbox.state import BY_HOST, BY_USER, Spec, State
from runner.store.store import Store

SPEC = Spec("web", "oci:x", "sha256:" + "0" * 64, "0" * 64, "0" * 64, None, None, 1, 64, 1)


@pytest.mark.parametrize("text", ["", "sometimes", "always:3", "on-failure:", "on-failure:0", "on-failure:-1", "no:1"])
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(BadInput, match="--restart"):
        Policy.parse(text)


def test_waits_double_up_to_a_minute_and_begin_anew_after_a_good_run() -> None:
    restarts = Restarts(Policy.parse("always"))
    waits = [restarts.wait_s(1, 0.5) for _ in range(12)]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == 60
    assert restarts.wait_s(0, GOOD_S) == 0.1


@pytest.mark.parametrize(
    ("policy", "status", "starts"),
    [("no", 1, False), ("on-failure", 0, False), ("on-failure", 3, True), ("always", 0, True), ("unless-stopped", 0, True)],
)  # fmt: skip
def test_which_end_is_followed_by_a_start(policy: str, status: int, starts: bool) -> None:
    assert (Restarts(Policy.parse(policy)).wait_s(status, 1) is not None) is starts


def test_on_failure_counts_failures_in_a_row() -> None:
    restarts = Restarts(Policy.parse("on-failure:2"))
    assert [restarts.wait_s(1, ran) is not None for ran in (1, 1, 1)] == [True, True, False]
    restarts = Restarts(Policy.parse("on-failure:2"))
    assert [restarts.wait_s(1, ran) is not None for ran in (1, 1, GOOD_S, 1, 1)] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("policy", "status", "ended_by", "pid", "starts"),
    [
        ("no", None, "", 7, False),
        ("always", 0, BY_USER, 0, True),
        ("unless-stopped", 0, BY_USER, 0, False),
        ("unless-stopped", 0, "", 0, True),
        ("unless-stopped", None, "", 7, True),
        ("on-failure", None, "", 7, True),
        ("on-failure", 143, BY_HOST, 0, True),
        ("on-failure", 3, "", 7, True),  # its keeper was killed while it waited
        ("on-failure", 3, "", 0, False),
        ("on-failure", 0, BY_USER, 0, False),
    ],
)
def test_what_starts_with_the_host(policy: str, status: int | None, ended_by: str, pid: int, starts: bool) -> None:
    state = State(Path("web"), SPEC, False, 0, 1.0, 2.0, 3.0, status, "", ended_by, raw={"pid": pid})
    assert Policy.parse(policy).starts_with_host(state) is starts


@pytest.mark.parametrize(
    ("sent", "goes_on"),
    [
        (messages.frame(messages.KILL), False),
        (messages.frame_number(messages.STOP, 3), False),
        (messages.frame(messages.EXEC, b"cmd=ls\0"), True),
        (b"\xff" * 64, True),
        (b"", True),
    ],
)
def test_clients_are_answered_meanwhile(tmp_path: Path, sent: bytes, goes_on: bool) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        went_on: list[bool] = []
        thread = threading.Thread(target=lambda: went_on.append(rest(listener, 1.0 if goes_on else 60.0, "web")))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "control"))  # it is there when the wait begins
            client.sendall(sent)
            client.settimeout(60)
            thread.start()
            answer = client.recv(4096)
        thread.join()
        assert went_on == [goes_on]
        if sent.startswith(messages.frame(messages.EXEC, b"cmd=ls\0")):
            assert b"sandbox web is about to start again" in answer


@pytest.mark.parametrize("goes_on", [True, False])
def test_who_waits_is_let_go_at_the_start_and_at_the_end(tmp_path: Path, goes_on: bool) -> None:
    """And not told that the sandbox is about to start: `runner wait` asks again then."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        client.settimeout(60)
        client.connect(str(tmp_path / "control"))
        client.sendall(messages.frame(messages.WAIT))
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(tmp_path / "control"))
            other.sendall(messages.frame(messages.EXEC if goes_on else messages.KILL, b""))
            assert rest(listener, 1.0 if goes_on else 60.0, "web") is goes_on
        assert client.recv(4096) == b""


def test_a_status_is_that_of_the_next_run(tmp_path: Path) -> None:
    """Of a keeper that lets go of its clients once."""
    state = State(tmp_path, SPEC, True, 0, 1.0, 2.0, None, None, "", "")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(tmp_path / "control"))
        listener.listen()

        def keep() -> None:
            for answer in (b"", messages.frame_number(messages.EXIT, 7)):
                client, _ = listener.accept()
                with client:
                    assert client.recv(4096) == messages.frame(messages.WAIT)
                    client.sendall(answer)

        keeper = threading.Thread(target=keep)
        keeper.start()
        sock = orders.watch_end(state, stack)
        assert sock is not None
        sock.settimeout(60)
        store = Store.open(tmp_path / "store")
        assert orders.status_of(store, state, sock) == 7
        keeper.join()
        sock = orders.watch_end(state, stack)  # nobody accepts it
        assert sock is not None
        sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            orders.status_of(store, state, sock)
