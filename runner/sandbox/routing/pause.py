"""Let a running machine stand still until its memory and its disk are saved. Pure: no sockets, no clock.

    client          keeper                     guest             QEMU
    SNAPSHOT    ──▶ PAUSE                  ──▶ freezes its programs and its file system
                                           ◀── PAUSED
                    stop, migrate                            ──▶ writes memory and devices to a file
                ◀── PAUSED
    copies the disk
    RESUME      ──▶ cont                                     ──▶ goes on
                    RESUME                 ──▶ thaws
                    TIME                   ◀── RESUMED
                ◀── RESUMED

Whatever fails, and if the client goes, the machine goes on. Nothing but these frames is sent to the guest meanwhile, so that
none is in the saved memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple

from rootdisk.text import printable
from runner.channel import messages
from runner.channel.messages import frame
from runner.machine import qmp
from runner.sandbox.routing.clients import Client

FREEZE_S = 30.0  # for the guest to write back what it has in memory, and to stand still
SAVE_S = 600.0
COPY_S = 120.0  # for the client to copy the disk
RESUME_S = 15.0
NEW = ".new-"  # begins the name of a snapshot that is being taken
_POLL_S = 0.01
_REQUEST = re.compile(rb"([md])([0-9a-f]{16})\Z")
_ENDS = ("completed", "failed", "cancelled")
_FASTEST = 1 << 50  # bytes a second: a migration is slow by default


def request(folder: str, *, has_memory: bool) -> bytes:
    """Return the order for a snapshot to be saved in the new directory `folder`, whose name begins with NEW."""
    return frame(messages.SNAPSHOT, (b"m" if has_memory else b"d") + folder.removeprefix(NEW).encode())


class Order(NamedTuple):
    """An order for QEMU's monitor. `folder` is that of the snapshot in which the order needs the file for the memory, or ""."""

    line: bytes
    number: int
    folder: str = ""


class _Failed(Exception):
    """The snapshot cannot be taken; the text says why."""


class Pause:
    """Steps to take a snapshot of a running machine, one at a time."""

    def __init__(self) -> None:
        self.client: Client | None = None  # that takes it
        self.is_on = False  # nothing else may be sent to the guest
        self._steps: Iterator[None] | None = None
        self._request = b""
        self._frames = bytearray()
        self._orders: list[Order] = []
        self._answers: dict[int, Mapping[str, Any]] = {}
        self._last_id = 0
        self._paused: bytes | None = None
        self._is_resumed = self._may_go = False
        self._is_late = False  # the guest has not answered to an earlier one
        self._why_not = ""
        self._now, self._time_ns = 0.0, 0

    # For the router

    def ask(self, client: Client, payload: bytes) -> str:
        """Begin a snapshot for `client`; return why not, or ""."""
        if not _REQUEST.match(payload):
            return "the client has violated the protocol"
        if self._steps is not None:
            return "another snapshot of this sandbox is being taken"
        if self._is_late:
            return "its guest has not answered to an earlier snapshot"
        self.client, self._request = client, payload
        self._paused, self._is_resumed, self._may_go, self._why_not = None, False, False, ""
        self._steps = self._take()
        return ""

    def let_go(self) -> None:
        """Note that the client has copied the disk."""
        self._may_go = True

    def leave(self, client: Client) -> None:
        """Note that a client is gone."""
        if client is self.client:
            self.client = None
            self.end("its client has ended")

    def end(self, why: str) -> None:
        """Give up a snapshot, if one is being taken."""
        self._why_not = self._why_not or why

    def hear(self, kind: int, payload: bytes) -> None:
        """Process PAUSED and RESUMED of the guest."""
        if self._is_late:
            self._is_late = kind == messages.PAUSED and not payload
        elif self.is_on and kind == messages.PAUSED:
            self._paused = payload
        elif self.is_on:
            self._is_resumed = True

    def take_frames(self) -> bytes:
        """Return the frames for the guest, once."""
        frames, self._frames = bytes(self._frames), bytearray()
        return frames

    # For the driver

    @property
    def next_look(self) -> float | None:
        """The time of the next `look` (monotonic seconds), if a snapshot is being taken."""
        return None if self._steps is None else self._now + _POLL_S

    def look(self, now: float, time_ns: int) -> None:
        """Go on as far as possible. `time_ns` is the time since the epoch, for the guest."""
        self._now, self._time_ns = now, time_ns
        if self._steps is not None:
            try:
                next(self._steps)
            except StopIteration:
                self._steps = None

    def take_orders(self) -> list[Order]:
        """Return the orders for QEMU, once."""
        orders, self._orders = self._orders, []
        return orders

    def answer(self, answers: list[Mapping[str, Any]]) -> None:
        """Process answers of QEMU to orders with an `id`."""
        for value in answers:
            if isinstance(number := value.get("id"), int) and 0 < number <= self._last_id:
                self._answers[number] = value

    def refuse(self, order: Order, why: str) -> None:
        """Note that an order could not be given."""
        self._answers[order.number] = {"error": {"desc": why}}

    # The steps. Each `yield` waits for something to happen.

    def _take(self) -> Iterator[None]:
        why = ""
        try:
            yield from self._freeze()
            try:
                yield from self._save()
            finally:
                yield from self._ask("cont", SAVE_S)
        except _Failed as err:
            why = str(err)
        if self.is_on:
            yield from self._thaw()
        client, self.client = self.client, None
        if client is not None:
            client.leave(frame(messages.ERROR, why.encode()) if why else frame(messages.RESUMED))

    def _freeze(self) -> Iterator[None]:
        self.is_on = True
        self._frames += frame(messages.PAUSE)
        yield from self._until(
            lambda: self._paused is not None, FREEZE_S, "its guest does not stand still, or its output is not read"
        )
        if self._paused:
            self.is_on = False  # the guest goes on by itself
            raise _Failed(printable(self._paused, 500))

    def _save(self) -> Iterator[None]:
        yield from self._ask("stop", SAVE_S)
        match = _REQUEST.match(self._request)
        assert match is not None
        if match[1] == b"m":
            # A machine that came from a template has this set; its memory is private, and part of what is saved.
            capabilities = [{"capability": "x-ignore-shared", "state": False}]
            yield from self._ask("migrate-set-capabilities", SAVE_S, capabilities=capabilities)
            yield from self._ask("migrate-set-parameters", SAVE_S, max_bandwidth=_FASTEST)
            yield from self._ask("getfd", SAVE_S, NEW + match[2].decode(), fdname="snapshot")
            yield from self._ask("migrate", SAVE_S, uri="fd:snapshot")
            yield from self._migrate()
        if self.client is not None:
            self.client.put(messages.PAUSED, b"")
        yield from self._until(lambda: self._may_go, COPY_S, "its disk was not copied in time")

    def _migrate(self) -> Iterator[None]:
        """Wait until the memory is saved. If nobody wants it any more, wait until QEMU has given it up."""
        is_cancelled = False
        while True:
            result = yield from self._ask("query-migrate", SAVE_S, is_last=True)
            status = result.get("status")
            if status in _ENDS:
                break
            if self._why_not and not is_cancelled:
                is_cancelled = True
                yield from self._ask("migrate_cancel", SAVE_S, is_last=True)
            yield
        if status != "completed":
            why = printable(str(result.get("error-desc", "")), 300)
            raise _Failed(self._why_not or "its memory could not be written" + (f": {why}" if why else ""))

    def _thaw(self) -> Iterator[None]:
        self._frames += frame(messages.RESUME)
        if self._paused is None:  # it goes on when it has come so far
            self._is_late = True
        else:
            end = self._now + RESUME_S
            while not self._is_resumed and self._now < end:
                yield
        self._frames += frame(messages.TIME, messages.TIME_FORMAT.pack(self._time_ns // 10**9, self._time_ns % 10**9))
        self.is_on = False

    def _until(self, is_done: Callable[[], bool], limit_s: float, why: str) -> Iterator[None]:
        end = self._now + limit_s
        while not is_done():
            if self._why_not or self._now > end:
                raise _Failed(self._why_not or why)
            yield

    def _ask(
        self, order: str, limit_s: float, folder: str = "", *, is_last: bool = False, **arguments: object
    ) -> Generator[None, None, Mapping[str, Any]]:
        """Give QEMU an order and return its result. `cont`, and what `is_last`, is asked even if nobody wants a snapshot."""
        self._last_id += 1
        number = self._last_id
        self._orders.append(Order(qmp.order(order, number, **arguments), number, folder))
        end = self._now + limit_s
        while number not in self._answers:
            if self._now > end:
                raise _Failed(f"QEMU has not answered to {order}")
            yield
        answer = self._answers.pop(number)
        if "return" not in answer and order != "cont":
            error = answer.get("error")
            said = error.get("desc") if isinstance(error, dict) else error
            raise _Failed(f"QEMU: {order}: {printable(str(said), 300)}")
        if self._why_not and not is_last and order != "cont":
            raise _Failed(self._why_not)
        result = answer.get("return")
        return result if isinstance(result, dict) else {}
