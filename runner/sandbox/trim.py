"""Have a guest give back to the host what its files no longer use."""

from __future__ import annotations

import contextlib

from rootdisk.errors import BadInput, RootdiskError
from rootdisk.records import pack
from rootdisk.text import printable
from runner.channel.exchange import Exchange
from runner.sandbox.liveness import not_running
from runner.sandbox.orders import connect
from runner.sandbox.state import State
from runner.store.limits import disk_bytes

_REQUEST = pack([("cmd", b"/.rootdisk/init"), ("cmd", b"trim"), ("user", b"0"), ("workdir", b"/")])
_UNKNOWN_STATUS = 125  # of an init that does not know what it is asked for
_ERRORS_MAX_BYTES = 4096
_RECEIVE_BYTES = 4096


def trim(state: State) -> int:
    """Trim the root of a running sandbox. Return by how many bytes its disk takes less of the host.

    Raises:
        BadInput: It does not run, or its init is too old.
        RootdiskError: Its root gives nothing back.
    """
    if not state.running:
        raise not_running(state)
    before = disk_bytes(state.folder)
    exchange, errors = Exchange(_REQUEST), bytearray()
    with connect(state) as sock:
        while exchange.status is None:
            with contextlib.suppress(ConnectionError):  # the program has ended, and receiving says how
                sock.sendall(exchange.out)
            exchange.out.clear()
            try:
                data = sock.recv(_RECEIVE_BYTES)
            except ConnectionError:
                data = b""
            for _, piece in exchange.receive(data):
                errors += piece[: _ERRORS_MAX_BYTES - len(errors)]
                exchange.taken(len(piece))
    name = printable(state.name)
    if exchange.status == _UNKNOWN_STATUS:
        raise BadInput(
            f"sandbox {name}: its init comes from an older rootdisk, which does not trim", "build its artifact again"
        )
    if exchange.status:
        reason = printable(errors.strip().rpartition(b"\n")[2].removeprefix(b"rootdisk: trim: "), 200)
        raise RootdiskError(f"sandbox {name}: {reason or f'trim: status {exchange.status}'}")
    return max(0, before - disk_bytes(state.folder))
