"""A keeper as a process, with real sockets: a test is its guest, its machine's output and its clients."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from rootdisk.durable import socket_address
from runner.machine.model import Helper, Vm
from runner.network.proxy import Proxy
from runner.sandbox.keeper.loop import Keeper
from runner.sandbox.keeper.serving import MACHINE_LOG_BYTES
from runner.sandbox.output.logs import Log
from tests.support.waiting import until

LIMIT_S = 60  # nothing here takes as long


class Running:
    """A keeper in a process of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        detached: bool = False,
        timeout_s: float | None = None,
        talk: str = "",
        acknowledges: bool = False,
        lanes: Sequence[socket.socket] = (),
        proxy: Callable[[], Proxy] | None = None,
    ) -> None:
        self.folder = folder
        self.guest, self._channel = socket.socketpair()
        self._console, console = socket.socketpair()
        self.client, main = socket.socketpair()
        self.guest.settimeout(LIMIT_S)
        listener = socket.socket(socket.AF_UNIX)
        with socket_address(folder, "control") as address:
            listener.bind(address)
        listener.listen(256)
        self.machine = subprocess.Popen(["sh", "-c", talk or "exec sleep 600"], stdout=subprocess.PIPE)
        self.helper = subprocess.Popen(["sh", "-c", "read word"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        vm = Vm(self.machine, self._channel, console, (Helper(self.helper, "the network", False),), lanes=tuple(lanes))
        assert self.machine.stdout is not None
        os.set_blocking(self.machine.stdout.fileno(), False)
        self.pid = os.fork()
        if not self.pid:
            status = 199
            try:
                for ours in (self.guest, self._console, self.client):
                    ours.close()
                output = Log(folder / "output.log") if detached else None
                logs = {out: Log(folder / name, MACHINE_LOG_BYTES) for name, out in vm.talk.items()}
                keeper = Keeper(
                    vm,
                    listener,
                    main,
                    Log(folder / "console.log"),
                    output,
                    timeout_s=timeout_s,
                    silent_s=None,
                    logs=logs,
                    proxy=proxy and proxy(),
                )
                status = keeper.run()
                if acknowledges:
                    keeper.acknowledge()
                keeper.tell(status)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        for theirs in (self._channel, console, main, listener):
            theirs.close()
        self._status: int | None = None

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(LIMIT_S)
        with socket_address(self.folder, "control") as address:
            sock.connect(address)
        return sock

    def lives(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status is None

    def ended(self) -> int:
        """How it ends, within reasonable time."""
        until(lambda: not self.lives(), LIMIT_S)
        assert self._status is not None
        return self._status

    def close(self) -> None:
        if self.lives():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for process in (self.machine, self.helper):
            process.kill()
            process.wait()
        for sock in (self.guest, self._console, self.client):
            sock.close()
