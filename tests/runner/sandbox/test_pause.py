"""A snapshot's steps: whatever guest, QEMU and client do, the machine goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from runner.channel import messages
from runner.channel.messages import Decoder, frame
from runner.sandbox.routing import pause
from runner.sandbox.routing.clients import Client
from runner.sandbox.routing.pause import Pause

FOLDER = ".new-0123456789abcdef"


class Machine:
    """A guest and QEMU that answer as they are told to."""

    def __init__(self, *, has_memory: bool = True, why: str = "", failing: str = "", status: str = "completed") -> None:
        self.pause, self.client = Pause(), Client()
        self.why, self.failing, self.status = why, failing, status
        self.answers = True  # the guest does
        self.orders: list[str] = []
        self.files: list[str] = []
        self.frames: list[int] = []
        self.said: list[tuple[int, bytes]] = []
        self.now = 1.0
        self._to_guest, self._to_client = Decoder(messages.TO_GUEST), Decoder(messages.TO_SNAPSHOT)
        payload = pause.request(FOLDER, has_memory=has_memory)[messages.HEADER.size :]
        assert self.pause.ask(self.client, payload) == ""

    def run(self, seconds: float = 1.0, step: float = 0.01) -> None:
        end = self.now + seconds
        while self.now < end and self.pause.next_look is not None:
            self.now += step
            self.pause.look(self.now, 5 * 10**9 + 7)
            for order in self.pause.take_orders():
                self.order(order)
            for kind, _, _ in self._to_guest.feed(self.pause.take_frames()):
                self.frames.append(kind)
                if self.answers and kind == messages.PAUSE:
                    self.pause.hear(messages.PAUSED, self.why.encode())
                elif self.answers and kind == messages.RESUME:
                    self.pause.hear(messages.RESUMED, b"")
            out = self.client.out()
            self.said += [(kind, text) for kind, _, text in self._to_client.feed(bytes(out))]
            self.client.sent(len(out))

    def order(self, order: pause.Order) -> None:
        value = json.loads(order.line)
        self.orders.append(value["execute"])
        self.files += [order.folder] if order.folder else []
        answer: Mapping[str, Any] = {"id": value["id"], "return": {}}
        if value["execute"] == self.failing:
            answer = {"id": value["id"], "error": {"desc": "no such\nthing"}}
        elif value["execute"] == "query-migrate":
            answer = {"id": value["id"], "return": {"status": self.status, "error-desc": "No space left on device"}}
        elif value["execute"] == "migrate_cancel":
            self.status = "cancelled"
        self.pause.answer([answer])


SAVE = ["stop", "migrate-set-capabilities", "migrate-set-parameters", "getfd", "migrate", "query-migrate"]
AGAIN = [messages.PAUSE, messages.RESUME, messages.TIME]


def test_in_order() -> None:
    machine = Machine()
    machine.run()
    assert machine.orders == SAVE
    assert machine.files == [FOLDER]
    assert machine.said == [(messages.PAUSED, b"")]
    assert machine.pause.is_on
    machine.pause.let_go()
    machine.run()
    assert machine.orders == [*SAVE, "cont"]
    assert machine.frames == AGAIN
    assert machine.said[1:] == [(messages.RESUMED, b"")]
    assert not machine.pause.is_on
    assert machine.pause.next_look is None


def test_the_disk_alone() -> None:
    machine = Machine(has_memory=False)
    machine.run()
    machine.pause.let_go()
    machine.run()
    assert machine.orders == ["stop", "cont"]
    assert machine.frames == AGAIN


@pytest.mark.parametrize("failing", ["stop", "getfd", "migrate"])
def test_qemu_refuses(failing: str) -> None:
    machine = Machine(failing=failing)
    machine.run()
    assert machine.orders[-1] == "cont"
    assert machine.frames == AGAIN
    assert machine.said == [(messages.ERROR, f"QEMU: {failing}: no such\\nthing".encode())]


def test_no_room_for_the_memory() -> None:
    machine = Machine(status="failed")
    machine.run()
    assert machine.orders == [*SAVE, "cont"]
    assert machine.said == [(messages.ERROR, b"its memory could not be written: No space left on device")]


def test_the_guest_cannot() -> None:
    """It says why, and goes on by itself."""
    machine = Machine(why="its programs do not stand still\x1b[2J")
    machine.run()
    assert machine.orders == []
    assert machine.frames == [messages.PAUSE]
    ((kind, text),) = machine.said
    assert kind == messages.ERROR
    assert b"\x1b" not in text
    assert not machine.pause.is_on


def test_the_guest_does_not_answer() -> None:
    """It gets what lets it go on, whenever it reads that; another snapshot waits until it has."""
    machine = Machine()
    machine.answers = False
    machine.run(pause.FREEZE_S + 1, 0.5)
    assert machine.frames == AGAIN
    assert machine.said[0][0] == messages.ERROR
    payload = pause.request(FOLDER, has_memory=True)[messages.HEADER.size :]
    assert "earlier" in machine.pause.ask(Client(), payload)
    machine.pause.hear(messages.PAUSED, b"")
    assert "earlier" in machine.pause.ask(Client(), payload)
    machine.pause.hear(messages.RESUMED, b"")
    assert machine.pause.ask(Client(), payload) == ""


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.1, 1.0])
def test_the_client_goes(after_s: float) -> None:
    machine = Machine()
    machine.run(after_s)
    machine.pause.leave(machine.client)
    machine.run()
    assert not machine.pause.is_on
    assert machine.pause.next_look is None
    assert machine.frames in ([], AGAIN)
    assert ("stop" in machine.orders) == ("cont" in machine.orders)


def test_a_long_save_is_cancelled() -> None:
    machine = Machine(status="active")
    machine.run(2)
    machine.pause.end("the sandbox is being stopped")
    machine.run(2)
    assert machine.orders[-1] == "cont"
    assert "migrate_cancel" in machine.orders
    assert machine.said == [(messages.ERROR, b"the sandbox is being stopped")]


def test_the_client_takes_too_long() -> None:
    machine = Machine()
    machine.run(pause.COPY_S + 10, 0.5)
    assert machine.orders[-1] == "cont"
    assert machine.said[-1] == (messages.ERROR, b"its disk was not copied in time")


def test_one_at_a_time() -> None:
    machine = Machine()
    payload = pause.request(FOLDER, has_memory=True)[messages.HEADER.size :]
    assert "another" in machine.pause.ask(Client(), payload)


@pytest.mark.parametrize(
    "payload", [b"", b"m", b"m../../../../etc/x", b"x0123456789abcdef", b"m0123456789abcdef/", b"m" + bytes(16)]
)
def test_a_client_that_names_another_place(payload: bytes) -> None:
    assert Pause().ask(Client(), payload) != ""


def test_the_time_is_the_hosts() -> None:
    machine = Machine(has_memory=False)
    machine.run()
    machine.pause.let_go()
    received = bytearray()
    while machine.pause.next_look is not None:
        machine.now += 0.01
        machine.pause.look(machine.now, 5 * 10**9 + 7)
        for order in machine.pause.take_orders():
            machine.order(order)
        frames = machine.pause.take_frames()
        received += frames
        if frames == frame(messages.RESUME):
            machine.pause.hear(messages.RESUMED, b"")
    assert received.endswith(frame(messages.TIME, messages.TIME_FORMAT.pack(5, 7)))
