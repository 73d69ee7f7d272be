"""Orders for a keeper that is going."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from rootdisk.errors import BadInput
from runner.sandbox import orders
from runner.sandbox.state import Unreadable


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
