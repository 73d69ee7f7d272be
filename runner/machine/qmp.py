"""Orders to QEMU through its monitor, one after the other: JSON lines; qemu/docs/interop/qmp-spec.rst."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from typing import Any

from rootdisk.errors import RootdiskError
from rootdisk.text import printable

_LINE_MAX_BYTES = 1 << 20
# RAM that is a file is not part of the saved state. It is set on both sides.
IGNORE_SHARED: dict[str, Any] = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


def order(name: str, /, _id: object = "", **arguments: object) -> bytes:
    """Return the line for an order. Names of arguments have `_` for `-`. The reply has the id `_id`."""
    names = {key.replace("_", "-"): value for key, value in arguments.items()}
    line: dict[str, object] = {"execute": name}
    if names:
        line["arguments"] = names
    if _id:
        line["id"] = _id
    return json.dumps(line).encode() + b"\n"


class Monitor:
    """The monitor of a machine that nobody else talks to."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        """Begin to talk. `deadline` is the monotonic time at which every order fails."""
        self._sock = sock
        self._deadline = deadline
        self._data = bytearray()
        self.ask("qmp_capabilities")

    def ask(self, name: str, fds: Sequence[int] = (), **arguments: object) -> Any:
        """Give an order, with descriptors, and return its result.

        Raises:
            RootdiskError: QEMU has refused it, has ended, or has not answered in time.
        """
        try:
            self._sock.settimeout(max(self._deadline - time.monotonic(), 0.001))
            socket.send_fds(self._sock, [order(name, **arguments)], fds)
            while True:
                answer = json.loads(self._line())
                if "error" in answer:
                    raise RootdiskError(f"QEMU: {name}: {printable(str(answer['error'].get('desc')), 300)}")
                if "return" in answer:
                    return answer["return"]
        except TimeoutError as err:
            raise RootdiskError(f"QEMU has not answered to {name}") from err
        except (OSError, ValueError, TypeError, AttributeError) as err:
            raise RootdiskError(f"QEMU: {name}: {printable(str(err), 300)}") from err

    def _line(self) -> bytes:
        while (end := self._data.find(b"\n")) < 0:
            self._sock.settimeout(max(self._deadline - time.monotonic(), 0.001))
            received = self._sock.recv(64 << 10)
            if not received or len(self._data) > _LINE_MAX_BYTES:
                raise ValueError("it has ended" if not received else "its answer is too long")
            self._data += received
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line
