"""The machine of a kept sandbox that does not run, started for a copy alone: its disk, its init, and no program of its own."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator

from rootdisk.errors import BadInput, RootdiskError
from runner.channel import messages
from runner.channel.messages import Decoder, GuestError, frame_number
from runner.machine import tsc
from runner.sandbox import guest_records, launch, liveness, prepare
from runner.sandbox.directory import Sandbox
from runner.sandbox.state import STOP_S, State
from runner.store.store import Store

_KEPT = ("machine-id", "hostname")
# It reads standard input, which never comes. By another name than init, which would make it process 1.
_PROGRAM = (("entrypoint", b"/proc/self/exe"), ("cmd", b"unpack2"), ("cmd", b"/"), ("cmd", b"none"))
_END_S = 30.0
Begin = Callable[[prepare.PreparedSandbox, Store, tsc.Counter], tuple[socket.socket, int]]


@contextlib.contextmanager
def started(store: Store, state: State, begin: Begin = launch.begin) -> Iterator[None]:
    """Run the sandbox's machine without network, volumes and program; afterwards its state is as it was.

    `begin` starts the keeper.

    Raises:
        BadInput: The sandbox keeps no changes.
        Busy: It has been started meanwhile.
        RootdiskError: It does not start.
    """
    kept_records = guest_records.records_of(state)
    if guest_records.is_read_only(kept_records):
        raise BadInput(f"sandbox {state.name} was booted with --read-only", "its changes are gone; start it first")
    spec = state.spec._replace(
        network="none",
        allow=(),
        secrets=(),
        forwards=(),
        volumes=(),
        volume_rights=(),
        detached=False,
        interactive=True,
        terminal=False,
        timeout_s=None,
    )
    run_records = [
        *(record for record in kept_records if record[0] in _KEPT),
        *_PROGRAM,
        ("user", b"0"),
        ("workdir", b"/"),
    ]
    sock, pid = begin(prepare.reopen(store, state, spec, run_records), store, tsc.Counter())
    with sock:
        wait_for(sock, messages.READY)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, RootdiskError):
                sock.sendall(frame_number(messages.STOP, STOP_S))
                wait_for(sock, messages.EXIT)
    if pid:
        os.waitpid(pid, 0)
    liveness.wait_end(state, _END_S)
    sandbox = Sandbox.open(state)
    try:
        sandbox.in_use = state.in_use
        sandbox.write_state(started=state.started, status=state.status, error=state.error, ended=state.ended)
    finally:
        sandbox.release()


def wait_for(sock: socket.socket, wanted: int) -> None:
    """Read from the keeper until a frame of that kind."""
    decoder = Decoder()
    while data := sock.recv(1 << 16):
        for kind, _, payload in decoder.feed(data):
            if kind == messages.ERROR:
                raise GuestError(payload.decode(errors="replace"))
            if kind == wanted:
                return
            if kind == messages.EXIT:
                raise RootdiskError("the sandbox's older init takes no copies", "runner start it, then copy")
    raise RootdiskError("the sandbox's keeper was killed", "its machine ended with it")
