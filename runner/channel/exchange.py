"""A program in a sandbox as another program sees it: its input, output and end over a connection to the keeper. Pure.

The driver sends `out`, gives what it receives to `receive`, and calls `taken` for output that its user has consumed. So the
same rules serve blocking and asynchronous callers.
"""

from __future__ import annotations

from rootdisk.errors import RootdiskError
from rootdisk.text import printable
from runner.channel import messages
from runner.channel.messages import WINDOW, Decoder, GuestError, frame, frame_number, number

STREAMS = {messages.STDOUT: "stdout", messages.STDERR: "stderr"}
_PIECE_BYTES = 64 << 10


class Exchange:
    """Streams of one program. At most WINDOW bytes of its output are under way before they are taken."""

    def __init__(self, request: bytes, *, has_input: bool = True, is_detached: bool = False) -> None:
        """Prepare to start the program that the record file `request` describes, which says whether the program has input.

        With `is_detached` the end comes when the program has started, with status 0, or when it cannot be run.

        Raises:
            BadInput: The request is too long.
        """
        messages.check_request(request)
        self.out = bytearray(
            frame(messages.EXEC_DETACHED if is_detached else messages.EXEC, request)
        )  # to send to the keeper
        self.input = bytearray()  # not sent yet, because the guest has no room for it
        self.status: int | None = None  # exit status, 0 to 255
        self._decoder = Decoder()
        self._credit = WINDOW  # bytes of input that the guest still accepts
        self._has_input = has_input
        self._closes = False
        self._is_closed = not has_input
        self._is_gone = False

    @property
    def needs_input_taken(self) -> bool:
        """Return whether input is left that the guest has not accepted."""
        return bool(self.input) and self.status is None

    def write(self, data: bytes) -> None:
        """Add to the program's standard input.

        Raises:
            RootdiskError: The input is closed, or the program has none.
        """
        if not self._has_input:
            raise RootdiskError("the program has no input", "spawn it with stdin=True")
        if self._closes:
            raise RootdiskError("the program's input is closed", "write before close_input")
        self.input += data
        self._push()

    def close_input(self) -> None:
        """End the program's standard input after what was written."""
        self._closes = True
        self._push()

    def close(self) -> None:
        """The driver has closed the connection."""
        self._is_gone = True

    def check_open(self) -> None:
        """Raise RootdiskError if the driver has closed the connection."""
        if self._is_gone:
            raise RootdiskError("the connection to the program is closed", "read and write before close")

    def signal(self, signal_number: int) -> None:
        """Send a signal to the program."""
        self.out += frame_number(messages.SIGNAL, signal_number)

    def taken(self, count: int) -> None:
        """Allow the program to send as many bytes again as the user has consumed."""
        if count and self.status is None:
            self.out += frame_number(messages.CREDIT, count)

    def receive(self, data: bytes) -> list[tuple[str, bytes]]:
        """Process received bytes; b"" is the end of the connection. Return output as (stream, bytes).

        Raises:
            GuestError: The sandbox failed or refuses the program.
            RootdiskError: The keeper has gone without the program's status.
        """
        output: list[tuple[str, bytes]] = []
        if not data and self.status is None:
            raise RootdiskError("the sandbox has ended", "runner ps -a")
        for kind, _, payload in self._decoder.feed(data):
            if kind in STREAMS:
                output.append((STREAMS[kind], payload))
            elif kind == messages.EXIT:
                self.status = number(payload) & 0xFF
            elif kind == messages.ERROR:
                raise GuestError(printable(payload))
            elif kind == messages.CREDIT:
                self._credit = min(WINDOW, self._credit + number(payload))
                self._push()
        return output

    def _push(self) -> None:
        while self.input and self._credit:
            count = min(len(self.input), self._credit, _PIECE_BYTES)
            self.out += frame(messages.STDIN, bytes(memoryview(self.input)[:count]))
            del self.input[:count]
            self._credit -= count
        if self._closes and not self.input and not self._is_closed:
            self._is_closed = True
            self.out += frame(messages.STDIN)
