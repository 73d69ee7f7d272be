"""The main connection of a sandbox: when its program has started, and how the sandbox has ended. Pure."""

from __future__ import annotations

from rootdisk.errors import RootdiskError
from rootdisk.text import printable
from runner.channel import messages
from runner.channel.messages import Decoder, GuestError, number


class Life:
    """Words of the keeper about a sandbox. With `is_tied` it says how the sandbox ends; otherwise it leaves after the start."""

    def __init__(self, *, is_tied: bool) -> None:
        self.is_ready = False
        self.status: int | None = None
        self.is_tied = is_tied
        self._decoder = Decoder()
        self._said = b""  # by a program that cannot be started
        self._error: RootdiskError | None = None

    def receive(self, data: bytes) -> None:
        """Process received bytes; b"" is the end of the connection.

        Raises:
            GuestError: The sandbox has failed; the message has the reason.
            RootdiskError: The program cannot be started, or the keeper was killed.
        """
        if not data and self.status is None and (self.is_tied or not self.is_ready):
            raise RootdiskError("the sandbox's keeper was killed", "its machine ended with it")
        for kind, _, payload in self._decoder.feed(data):
            if kind == messages.READY:
                self.is_ready = True
            elif kind in (messages.STDOUT, messages.STDERR):
                self._said += payload
            elif kind == messages.ERROR:
                self._error = GuestError(printable(payload))
            elif kind == messages.EXIT:
                self.status = number(payload) & 0xFF
        if self._error is not None:
            raise self._error
        if self.status is not None and not self.is_ready:
            said = f": {printable(self._said.strip())}" if self._said.strip() else ""
            raise RootdiskError(f"the sandbox's program was not started, status {self.status}{said}")
