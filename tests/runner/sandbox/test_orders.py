"""Orders for a keeper that is going."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rootdisk.errors import BadInput, RootdiskError
from runner.sandbox import directory, orders
from runner.sandbox.state import Spec, State, Unreadable


@pytest.mark.parametrize("accepted", [False, True])
def test_an_order_that_comes_too_late(tmp_path: Path, accepted: bool) -> None:
    """The keeper ends while an order is on its way: that is said, and no broken pipe."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "control"))
        listener.listen(1)

        def end() -> None:
            sock, _ = listener.accept() if accepted else (None, None)
            if sock is not None:
                sock.recv(1)
                sock.close()
            listener.close()

        thread = threading.Timer(0 if accepted else 0.3, end)
        thread.start()
        with pytest.raises(BadInput, match="does not run"):
            orders.give(Unreadable(tmp_path, "", True), bytes(8 << 20))
        thread.join()


@pytest.mark.parametrize("act", [orders.end_all, lambda all_: orders.stop_all(all_, 10)])
def test_a_keeper_that_has_closed_its_socket_is_waited_for(
    tmp_path: Path, act: Callable[[list[State]], dict[str, RootdiskError]]
) -> None:
    """It ends, but still writes its state: `rm --force` and `stop` said "does not run", and left it."""
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    ended: list[int] = []

    def end() -> None:
        ended.append(1)
        os.close(lock)

    thread = threading.Timer(0.3, end)
    thread.start()
    spec = Spec("web", "oci:x", "sha256:" + "0" * 64, "0" * 64, "0" * 64, None, None, 1, 64, 1)
    assert act([State(tmp_path, spec, True, 0, 1.0, 1.0, None, None, "")]) == {}
    assert ended
    thread.join()


def test_two_remove_one_sandbox(tmp_path: Path) -> None:
    """The other one is faster, and both succeed."""
    folder = tmp_path / "box"
    folder.mkdir()
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def end() -> None:
        folder.rename(tmp_path / ".new-1")
        os.close(lock)

    thread = threading.Timer(0.2, end)
    thread.start()
    directory.remove(Unreadable(folder, "", False))
    thread.join()
