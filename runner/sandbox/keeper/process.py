"""The process of a sandbox's keeper: it runs the machine, again and again if the restart policy says so."""

from __future__ import annotations

import os
import socket
import sys
from typing import NoReturn

from rootdisk.errors import RootdiskError
from rootdisk.system import process
from rootdisk.system.debug import is_shown
from rootdisk.text import describe_error
from runner.machine import tsc
from runner.sandbox.keeper.ending import FAILED, Ended, finish
from runner.sandbox.keeper.restart import Policy, Restarts, nobody, rest
from runner.sandbox.lookup import read
from runner.sandbox.prepare import PreparedSandbox, prepare_again
from runner.sandbox.state import BY_USER
from runner.store.store import Store


def keep(
    prepared: PreparedSandbox, store: Store, client: socket.socket, listener: socket.socket, counter: tsc.Counter
) -> NoReturn:
    """Be the keeper process. Never returns."""
    status = 1
    try:
        sandbox = prepared.sandbox
        is_quiet = not is_shown() or sandbox.spec.detached
        fds = {client.fileno(), listener.fileno(), sandbox.lock, *prepared.artifact.lease}
        if prepared.events is not None and prepared.events.fd is not None:
            fds.add(prepared.events.fd)
        if prepared.served is not None:
            fds |= set(prepared.served.fds)
        process.detach(fds, sandbox.folder / "keeper.log" if is_quiet else None)
        process.retitle(f"runner: keeps {sandbox.spec.name}")
        for name in prepared.secrets.variables if prepared.secrets is not None else ():
            os.environ.pop(name, None)  # QEMU and other programs of the keeper do not get it
        restarts = Restarts(Policy.parse(sandbox.spec.restart if sandbox.spec.detached else "no"))
        from runner.sandbox.keeper.run import (
            run,  # loaded here alone: the process that starts the sandbox does not need it
        )

        while True:
            ended, wait_s = run(prepared, store, client, listener, counter, restarts)
            again = _restarted(prepared, store, listener, wait_s, ended) if wait_s is not None else None
            if again is None:
                break
            prepared, client = again, nobody()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _restarted(
    prepared: PreparedSandbox, store: Store, listener: socket.socket, wait_s: float, ended: Ended
) -> PreparedSandbox | None:
    """Wait, and prepare the sandbox to start again; None if it was told to end meanwhile, or cannot start."""
    sandbox = prepared.sandbox
    if not rest(listener, wait_s, sandbox.spec.name):
        ended = ended._replace(by=BY_USER)
    else:
        try:
            again = prepare_again(store, sandbox, read(sandbox.folder), secrets=prepared.secrets)
            events = prepared.events
            again = again._replace(events=events and events._replace(sandbox=sandbox.spec.name))
            prepared.artifact.release()  # the new lease has begun
            return again
        except (RootdiskError, OSError, ValueError) as err:
            ended = ended._replace(status=FAILED, error=describe_error(err))
    finish(prepared, ended)
    return None
