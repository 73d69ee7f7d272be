"""The router against clients and a guest that do whatever they like: it goes on, holds little, and loses nothing honest."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rootdisk.errors import BadInput
from runner.channel import messages
from runner.channel.messages import HEADER, PAYLOAD_MAX, REQUEST_MAX, WINDOW, Decoder, frame, frame_number
from runner.sandbox.routing.clients import Client
from runner.sandbox.routing.connections import CLIENTS_MAX, FULL, LOGS_MAX, VISITORS_MAX
from runner.sandbox.routing.router import SESSIONS_MAX, Router
from runner.store.events import Events

LIMIT_A_CLIENT, LIMIT = 2 * WINDOW, 1 << 20


def bounded(router: Router) -> None:
    """What the security page says of the keeper's memory."""
    assert router.held <= (len(router.clients)) * LIMIT_A_CLIENT + LIMIT
    assert len(router.clients) <= CLIENTS_MAX + VISITORS_MAX + 1


class Guest:
    """The other end of the channel as it should be: what it is told, and what it may send."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.decoder = Decoder(range(1, 64))
        self.credit: dict[int, int] = {0: WINDOW}
        self.input: dict[int, bytes] = {}
        self.signals: dict[int, list[int]] = {}
        self.requests: dict[int, bytes] = {}
        self.stops: list[int] = []

    def listen(self, size: int) -> None:
        """Take up to `size` bytes from the router."""
        data = bytes(self.router.to_guest()[:size])
        self.router.sent_to_guest(len(data))
        for kind, session, payload in self.decoder.feed(data):
            if kind == messages.EXEC:
                self.requests[session], self.credit[session], self.input[session] = payload, WINDOW, b""
                self.signals[session] = []
            elif kind == messages.STDIN:
                self.input[session] = self.input.get(session, b"") + payload
            elif kind == messages.CREDIT:
                self.credit[session] = self.credit.get(session, 0) + messages.number(payload)
            elif kind == messages.SIGNAL:
                self.signals.setdefault(session, []).append(messages.number(payload))
            elif kind == messages.STOP:
                self.stops.append(messages.number(payload))

    def say(self, data: bytes) -> int:
        """Send to the router as much as it wants: how much that was."""
        done = 0
        while done < len(data) and (size := self.router.guest_wants()):
            self.router.from_guest(data[done : done + size])
            done += size
        return min(done, len(data))


class Honest:
    """A client that keeps to the rules: it has a command in the guest, which writes to it and reads from it."""

    def __init__(self, router: Router, request: bytes) -> None:
        self.router = router
        self.decoder = Decoder()
        self.client = router.join()
        self.request = request
        self.received = {messages.STDOUT: b"", messages.STDERR: b""}
        self.sent = {messages.STDOUT: b"", messages.STDERR: b""}
        self.input = b""
        self.credit = WINDOW
        self.status: int | None = None
        self.number = 0
        self.out = bytearray(frame(messages.EXEC, request))

    def push(self) -> None:
        """Send what is to be sent, as far as it is read."""
        while self.out and (size := self.router.wants(self.client)):
            self.router.from_client(self.client, bytes(self.out[:size]))
            del self.out[:size]

    def pull(self, size: int) -> None:
        """Read up to `size` bytes and grant them again."""
        while size and (data := bytes(self.router.to_client(self.client)[:size])):
            self.router.sent_to_client(self.client, len(data))
            size -= len(data)
            for kind, _, payload in self.decoder.feed(data):
                if kind in self.received:
                    self.received[kind] += payload
                    self.out += frame_number(messages.CREDIT, len(payload))
                elif kind == messages.CREDIT:
                    self.credit += messages.number(payload)
                elif kind == messages.EXIT:
                    self.status = messages.number(payload)
                else:
                    raise AssertionError((kind, payload))
        self.push()


NUMBERS = st.sampled_from([0, 1, 2, 3, 1 << 15, 0xFFFF])
KINDS = st.integers(0, 255)
PAYLOADS = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 0xFFFF_FFFF).map(lambda n: struct.pack("<I", n)),
    st.sampled_from([1, 1000, WINDOW - 1, WINDOW, PAYLOAD_MAX]).map(bytes),
)


def any_frame(kinds: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    """A frame of any kind, size and session; or one that is none, or half of one."""
    whole = st.builds(frame, kinds, PAYLOADS, NUMBERS)
    lying = st.builds(
        lambda length, kind, zero, session: HEADER.pack(length, kind, zero, session),
        st.sampled_from([0, 7, PAYLOAD_MAX + 1, 0xFFFF_FFFF]),
        kinds,
        st.sampled_from([0, 1, 255]),
        NUMBERS,
    )
    return st.one_of(whole, lying, whole.flatmap(lambda data: st.integers(0, len(data)).map(lambda n: data[:n])))


# What ends a sandbox is its guest's right, and a client's: EXIT and ERROR of session 0, READY of an unknown version, KILL.
GUEST_KINDS = KINDS.filter(lambda kind: kind not in (messages.EXIT, messages.ERROR, messages.READY))
CLIENT_KINDS = KINDS.filter(lambda kind: kind != messages.KILL)


class Anything(RuleBasedStateMachine):
    """Honest sessions beside clients that send anything, and a guest that says anything between its honest frames."""

    @initialize(detached=st.booleans())
    def begin(self, detached: bool) -> None:
        self.logged = bytearray()
        self.router = Router(self.log if detached else None)
        self.guest = Guest(self.router)
        self.honest: list[Honest] = []
        self.rude: list[Client] = []
        self.half = bytearray()  # of the guest's honest frames, not sent yet

    def log(self, _: int, data: bytes) -> None:
        self.logged += data

    @rule(request=st.binary(max_size=2000))
    def an_honest_client(self, request: bytes) -> None:
        if len(self.honest) < 4:
            one = Honest(self.router, request)
            one.push()
            self.honest.append(one)
            while one.client.session is None:
                self.guest.listen(1 << 20)
                one.push()
            one.number = one.client.session.number

    @rule()
    def a_rude_client(self) -> None:
        if (oldest := self.router.too_many()) is not None:
            self.it_goes(oldest)
        self.rude.append(self.router.join())

    @rule(chance=st.randoms(use_true_random=False), data=any_frame(CLIENT_KINDS))
    def it_sends(self, chance: random.Random, data: bytes) -> None:
        if self.rude:
            client = chance.choice(self.rude)
            self.router.from_client(client, data[: self.router.wants(client)])

    @rule(chance=st.randoms(use_true_random=False), size=st.integers(1, 100_000))
    def it_reads(self, chance: random.Random, size: int) -> None:
        if self.rude:
            client = chance.choice(self.rude)
            self.router.sent_to_client(client, len(self.router.to_client(client)[:size]))
            if self.router.is_done(client):
                self.it_goes(client)

    @rule(chance=st.randoms(use_true_random=False))
    def it_closes(self, chance: random.Random) -> None:
        if self.rude:
            self.it_goes(chance.choice(self.rude))

    def it_goes(self, client: Client) -> None:
        self.rude.remove(client)
        self.router.leave(client)

    @rule(data=any_frame(GUEST_KINDS), repeat=st.sampled_from([1, 2, 50]))
    def the_guest_says_anything(self, data: bytes, repeat: int) -> None:
        """Of sessions that nobody honest has; whole frames only, as all of them share one stream."""
        length, _, _, session = HEADER.unpack_from(data.ljust(HEADER.size, b"\0"))
        if len(data) < HEADER.size or length > len(data) or session in {one.number for one in self.honest}:
            return
        self.flush_half()
        if not self.half:  # what the router does not take yet, as nobody reads the main session, is said later
            self.half += data[: HEADER.size + length].ljust(HEADER.size + length, b"\0") * repeat
            self.flush_half()

    @rule(size=st.integers(1, 1 << 20))
    def the_guest_reads(self, size: int) -> None:
        self.guest.listen(size)

    @rule(
        chance=st.randoms(use_true_random=False),
        kind=st.sampled_from([messages.STDOUT, messages.STDERR]),
        data=st.data(),
    )
    def an_honest_command_writes(self, chance: random.Random, kind: int, data: st.DataObject) -> None:
        running = [one for one in self.honest if one.status is None and self.guest.credit.get(one.number)]
        if running:
            one = chance.choice(running)
            size = data.draw(st.sampled_from([1, 5, 4000, 32 << 10]))
            payload = chance.randbytes(min(size, self.guest.credit[one.number]))
            self.guest.credit[one.number] -= len(payload)
            one.sent[kind] += payload
            self.half += frame(kind, payload, one.number)
            self.flush_half(data.draw(st.sampled_from([3, 8, 1000, 1 << 20])))

    def flush_half(self, size: int = 1 << 30) -> None:
        done = self.guest.say(bytes(self.half[:size]))
        del self.half[:done]

    @rule(chance=st.randoms(use_true_random=False), size=st.integers(1, 60_000))
    def an_honest_client_reads(self, chance: random.Random, size: int) -> None:
        if self.honest:
            chance.choice(self.honest).pull(size)

    @rule(chance=st.randoms(use_true_random=False), data=st.binary(max_size=5000))
    def an_honest_client_writes(self, chance: random.Random, data: bytes) -> None:
        if self.honest:
            one = chance.choice(self.honest)
            data = data[: one.credit]
            if data:
                one.credit -= len(data)
                one.input += data
                one.out += frame(messages.STDIN, data)
            one.push()

    @rule(size=st.integers(1, 4 << 20))
    def the_main_client_reads(self, size: int) -> None:
        main = self.router.main
        while size and self.router.to_client(main):
            count = len(self.router.to_client(main)[:size])
            self.router.sent_to_client(main, count)
            size -= count

    @invariant()
    def it_goes_on_and_holds_little(self) -> None:
        if hasattr(self, "router"):
            assert not self.router.is_over
            bounded(self.router)

    def teardown(self) -> None:
        """Everybody honest gets everything."""
        if not hasattr(self, "router"):
            return
        for _ in range(200):
            self.the_main_client_reads(8 << 20)
            self.flush_half()
            for one in self.honest:
                one.pull(1 << 20)
            self.guest.listen(1 << 22)
        for one in self.honest:
            assert one.received == one.sent
            assert self.guest.input[one.number] == one.input
            assert self.guest.requests[one.number] == one.request
            self.half += frame_number(messages.EXIT, 7, one.number)
            self.flush_half()
            one.pull(1 << 20)
            assert one.status == 7
            assert self.router.is_done(one.client)


AnythingTest = Anything.TestCase
AnythingTest.settings = settings(
    max_examples=int(os.environ.get("ROUTER_EXAMPLES", "30")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
pytest.mark.filterwarnings("ignore")(AnythingTest)


@pytest.mark.nightly
def test_anything_for_long() -> None:
    """As above, three thousand times."""
    from hypothesis.stateful import run_state_machine_as_test

    long = settings(max_examples=3000, stateful_step_count=120, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Anything, settings=long)


@settings(deadline=None, max_examples=80)
@given(detached=st.booleans(), said=st.lists(any_frame(GUEST_KINDS)), asked=st.lists(any_frame(CLIENT_KINDS)))
def test_any_bytes(detached: bool, said: list[bytes], asked: list[bytes]) -> None:
    """Half frames, frames that lie about their length, sessions that nobody has: nothing ends by it."""
    router = Router((lambda *_: None) if detached else None)
    client, guest = executed(router), Guest(router)
    for data in asked:
        router.from_client(client, data[: router.wants(client)])
        bounded(router)
    for data in said:
        guest.say(data)
        bounded(router)
    # A frame is what is whole; so is one that follows what has been cut off before it.
    # ERROR, or READY with a version that is not known.
    assert router.error is None or {5, 1} & set(b"".join(said))
    assert router.status is None or b"\x04" in b"".join(said)


def executed(router: Router, request: bytes = b"") -> Client:
    client = router.join()
    router.from_client(client, frame(messages.EXEC, request))
    return client


def said(router: Router, client: Client) -> list[tuple[int, bytes]]:
    """All that a client is told."""
    decoder, found = Decoder(), []
    while data := bytes(router.to_client(client)):
        router.sent_to_client(client, len(data))
        found += [(kind, payload) for kind, _, payload in decoder.feed(data)]
    return found


@pytest.fixture
def router() -> Router:
    return Router(None)


FLOODS: dict[str, Callable[[], bytes]] = {
    "output of sessions that nobody has": lambda: frame(messages.STDOUT, bytes(1000), 77),
    "output of a session whose client has gone": lambda: frame(messages.STDOUT, bytes(1000), 1),
    "credit": lambda: frame_number(messages.CREDIT, 1, 2),
    "output that is not read": lambda: frame(messages.STDOUT, b"x", 2),
    "output on two streams": lambda: frame(messages.STDOUT, b"x", 2) + frame(messages.STDERR, b"y", 2),
    "output of the main program": lambda: frame(messages.STDOUT, bytes(1000)),
    "READY": lambda: frame_number(messages.READY, 1),
    "READY of others": lambda: frame_number(messages.READY, 1, 2),
    "text": lambda: frame(messages.LOG, bytes(PAYLOAD_MAX)),
    "frames of no kind": lambda: frame(99, bytes(1000)),
    "frames too long": lambda: frame(messages.STDOUT, bytes(PAYLOAD_MAX + 1)),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_guest_that_floods(flood: str) -> None:
    router = Router(None)
    gone, here = executed(router), executed(router)
    router.leave(gone)
    guest, data = Guest(router), FLOODS[flood]()
    data *= 1 + 60_000 // len(data)
    for _ in range(50):
        guest.say(data)
        bounded(router)
    assert not router.is_over
    assert router.held < LIMIT
    assert here in router.clients


CLIENT_FLOODS = {
    "signals": frame_number(messages.SIGNAL, 1),
    "sizes": frame(messages.RESIZE, bytes(4)),
    "stops": frame_number(messages.STOP, 10),
    "credit": frame_number(messages.CREDIT, 1000),
    "input": frame(messages.STDIN, bytes(1000)),
    "empty input": frame(messages.STDIN),
    "waits": frame(messages.WAIT),
    "commands": frame(messages.EXEC),
}


@pytest.mark.parametrize("flood", CLIENT_FLOODS)
def test_a_client_that_floods_a_guest_that_stands_still(router: Router, flood: str) -> None:
    client = executed(router)
    data = CLIENT_FLOODS[flood] * 100
    for _ in range(1000):
        router.from_client(client, data[: router.wants(client)])
        router.to_guest()
        bounded(router)
    assert not router.is_over


def test_more_input_than_allowed_ends_that_client_only(router: Router) -> None:
    client, other = executed(router), executed(router)
    piece = frame(messages.STDIN, bytes(60_000))
    guest = Guest(router)
    for _ in range(5):
        router.from_client(client, piece)
        guest.listen(1 << 20)
    assert said(router, client) == [(messages.ERROR, b"the client has violated the protocol")]
    assert router.is_done(client)
    assert other.session is not None
    assert len(guest.input[1]) <= WINDOW
    guest.listen(1 << 20)
    assert guest.signals[1] == [1]


def test_more_output_than_allowed_ends_that_session_only(router: Router) -> None:
    client, other = executed(router), executed(router)
    guest = Guest(router)
    for _ in range(10):
        guest.say(frame(messages.STDOUT, bytes(60_000), 1))
    found = said(router, client)
    assert sum(len(payload) for kind, payload in found if kind == messages.STDOUT) == 240_000
    assert found[-1][0] == messages.ERROR
    assert b"sent more than allowed" in found[-1][1]
    assert not router.is_over
    guest.say(frame(messages.STDOUT, b"whole", 2) + frame_number(messages.EXIT, 3, 2))
    assert said(router, other) == [(messages.STDOUT, b"whole"), (messages.EXIT, struct.pack("<I", 3))]


def test_orders_do_not_wait_for_a_guest_that_stands_still(router: Router) -> None:
    for _ in range(3):
        executed(router, bytes(REQUEST_MAX))
    blocked = executed(router, b"not taken any more")
    assert blocked.session is None
    assert router.wants(blocked) == 0
    client = router.join()
    router.from_client(client, frame_number(messages.STOP, 3))
    assert router.take_stop() == 3
    assert router.take_stop() is None
    guest = Guest(router)
    for _ in range(10):
        guest.listen(1 << 20)
    assert guest.stops == [3]
    assert b"not taken any more" in guest.requests.values()
    router.from_client(client, frame(messages.KILL))
    assert router.is_killed


def test_a_full_house_has_room_for_orders(router: Router) -> None:
    inside = [executed(router) for _ in range(CLIENTS_MAX)]
    visitor = executed(router)
    assert said(router, visitor) == [(messages.ERROR, FULL.encode())]
    for _ in range(3 * VISITORS_MAX):
        if (oldest := router.too_many()) is not None:
            router.leave(oldest)
        router.join()
    assert len(router.clients) <= CLIENTS_MAX + VISITORS_MAX + 1
    order = router.join()
    router.from_client(order, frame_number(messages.STOP, 1))
    assert router.take_stop() == 1
    assert all(one in router.clients for one in inside)
    router.leave(inside[0])
    assert executed(router).session is not None


def test_a_guest_that_ends_no_session_gets_no_more_of_them(router: Router) -> None:
    guest = Guest(router)
    for _ in range(SESSIONS_MAX):
        client = executed(router)
        assert client.session is not None
        guest.listen(1 << 20)
        router.leave(client)
    assert b"which is the limit" in said(router, executed(router))[0][1]
    guest.say(frame_number(messages.EXIT, 0, 5))
    assert executed(router).session is not None


def test_a_number_is_not_used_again_at_once(router: Router) -> None:
    """What a guest still says of the old one is not taken for the new one's."""
    guest = Guest(router)
    first = executed(router)
    guest.listen(100)
    guest.say(frame_number(messages.EXIT, 0, 1) + frame(messages.STDOUT, b"late", 1))
    second = executed(router)
    guest.say(frame(messages.STDOUT, b"late", 1))
    assert [kind for kind, _ in said(router, first)] == [messages.EXIT]
    assert said(router, second) == []


def test_text_of_the_guest_is_made_safe(router: Router) -> None:
    client = executed(router)
    Guest(router).say(frame(messages.ERROR, b"\x1b]0;owned\x07\nrunner: all is well" + bytes(5000), 1))
    ((kind, text),) = said(router, client)
    assert kind == messages.ERROR
    assert text.decode().isprintable()
    assert len(text) < 1500
    Guest(router).say(frame(messages.ERROR, b"\x1b[2J\xff"))
    assert str(router.error) == "\\x1b[2J\\xff"


def test_what_a_guest_logs_is_bounded(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --debug its lines go to keeper.log: so many of them, escaped, and no more."""
    logged: list[str] = []
    monkeypatch.setattr("runner.sandbox.routing.router.debug", logged.append)
    for _ in range(3):
        Guest(router).say(frame(messages.LOG, b"\x1b[2J\n") * (LOGS_MAX // 2))
    assert logged == [r"guest: \x1b[2J\n"] * LOGS_MAX
    assert router.error is None


def test_small_writes_to_a_blocked_reader_stay_in_order(router: Router) -> None:
    client = executed(router)
    guest = Guest(router)
    for number in range(1000):
        guest.say(frame(messages.STDOUT, b"%d\n" % number, 1))
    found = said(router, client)
    assert b"".join(payload for _, payload in found) == b"".join(b"%d\n" % number for number in range(1000))


def test_a_detached_program_is_logged_and_granted(router: Router) -> None:
    logged: list[tuple[int, bytes]] = []
    router = Router(lambda kind, data: logged.append((kind, data)))
    guest = Guest(router)
    guest.say(frame_number(messages.READY, 1) + frame(messages.STDOUT, b"out") + frame(messages.STDERR, b"err"))
    guest.credit[0] = 0
    guest.listen(100)
    assert logged == [(messages.STDOUT, b"out"), (messages.STDERR, b"err")]
    assert guest.credit[0] == 6
    assert said(router, router.main) == [(messages.READY, struct.pack("<I", 1))]
    assert router.is_done(router.main)
    router.leave(router.main)
    assert not router.is_over


def test_the_client_of_the_foreground_goes(router: Router) -> None:
    router.leave(router.main)
    assert router.left


def test_an_init_of_another_age() -> None:
    """The channel's version is read: a newer init ends the sandbox with a line that says what to do; an older one works."""
    for version in range(1, messages.CHANNEL_VERSION + 1):
        router = Router(None)
        Guest(router).say(frame_number(messages.READY, version))
        assert not router.is_over
    for version in (0, messages.CHANNEL_VERSION + 1, 0xFFFF_FFFF):
        router = Router(None)
        Guest(router).say(frame_number(messages.READY, version))
        assert router.error is not None
        assert f"channel version {version};" in str(router.error)
        assert "newer rootdisk" in router.error.hint
    router = Router(None, needs="--tmpfs")
    Guest(router).say(frame_number(messages.READY, 2))
    assert "does not know --tmpfs: build the artifact again" in str(router.error)
    router = Router(None, needs="--tmpfs")
    Guest(router).say(frame_number(messages.READY, 3))
    assert not router.is_over


def test_a_guest_that_is_powered_off_says_so_once() -> None:
    router = Router(None)
    guest = Guest(router)
    guest.say(frame_number(messages.READY, 3))
    guest.say(frame_number(messages.POWER, 9) + frame_number(messages.POWER, 1) * 1000)
    assert not router.is_over
    guest.say(frame_number(messages.EXIT, 0))
    assert router.status == 0
    notices = [payload for kind, payload in said(router, router.main) if kind == messages.NOTICE]
    assert notices == [messages.POWER_WORDS[1].encode()]


def test_a_guest_that_knows_no_streams_is_refused() -> None:
    """READY has a second number since then; what is sent to the client has one, as clients of older runners expect."""
    for payload, is_refused in (
        (struct.pack("<I", 3), True),
        (struct.pack("<II", 3, 0), True),
        (struct.pack("<II", 3, 1), True),
        (struct.pack("<II", 3, messages.HAS_STREAMS), False),
        (struct.pack("<IIQ", 3, messages.HAS_STREAMS | 1 << 31, 7), False),
    ):
        router = Router(None, "", "--allow")
        router.from_guest(frame(messages.READY, payload))
        assert (router.error is not None) == is_refused
        if is_refused:
            assert "does not know --allow" in str(router.error)
        else:
            assert bytes(router.to_client(router.main)) == frame(messages.READY, payload[:4])
        router = Router(None)
        router.from_guest(frame(messages.READY, payload))
        assert router.error is None


def test_a_detached_command() -> None:
    """Its client gets EXIT when it has started, its output goes nowhere, and it is not told to hang up."""
    router = Router(lambda *_: None)
    guest = Guest(router)
    guest.say(frame(messages.READY, struct.pack("<II", 3, messages.HAS_DETACH)))
    client, other = router.join(), router.join()
    router.from_client(client, frame(messages.EXEC_DETACHED, b"cmd=a\0"))
    router.from_client(other, frame(messages.EXEC, b"cmd=b\0"))
    guest.listen(1 << 20)
    assert guest.requests == {1: b"cmd=a\0detach=1\0", 2: b"cmd=b\0"}
    guest.say(frame(messages.READY, b"", 1))
    assert said(router, client) == [(messages.EXIT, bytes(4))]
    assert router.is_done(client)
    router.leave(client)
    guest.say(frame(messages.STDOUT, bytes(WINDOW), 1))
    guest.listen(1 << 20)
    assert guest.credit[1] == 2 * WINDOW
    assert guest.signals[1] == []
    guest.say(frame(messages.READY, b"", 2))  # of a command that is not detached
    assert [kind for kind, _ in said(router, other)] == [messages.ERROR]


@pytest.mark.parametrize("reply", [(messages.STDERR, b"cannot run a"), (messages.EXIT, struct.pack("<I", 127))])
def test_a_detached_command_that_cannot_start(reply: tuple[int, bytes]) -> None:
    router = Router(lambda *_: None)
    guest = Guest(router)
    guest.say(frame(messages.READY, struct.pack("<II", 3, messages.HAS_DETACH)))
    client = router.join()
    router.from_client(client, frame(messages.EXEC_DETACHED, b"cmd=a\0"))
    guest.say(frame(*reply, 1))
    assert said(router, client) == [reply]


def test_an_older_init_knows_no_detached_commands() -> None:
    router = Router(lambda *_: None)
    Guest(router).say(frame(messages.READY, struct.pack("<II", 3, messages.HAS_STREAMS)))
    client = router.join()
    router.from_client(client, frame(messages.EXEC_DETACHED, b"cmd=a\0"))
    ((kind, why),) = said(router, client)
    assert kind == messages.ERROR
    assert b"knows no exec --detach" in why


def test_a_rename(tmp_path: Path) -> None:
    """Only while its program runs; refused without harm if the name is taken; events follow."""

    def rename(name: str) -> Events:
        if name == "taken":
            raise BadInput("there is already a sandbox taken", "choose another")
        return Events(tmp_path, name)

    router = Router(lambda *_: None, events=Events(tmp_path, "before"), rename=rename)

    def ask(payload: bytes) -> tuple[int, bytes]:
        client = router.join()
        router.from_client(client, frame(messages.RENAME, payload))
        (answer,) = said(router, client)
        return answer

    assert ask(b"new") == (messages.ERROR, b"its program is just starting or ending: try again")
    Guest(router).say(frame_number(messages.READY, 3))
    assert ask(b"taken")[1] == b"there is already a sandbox taken: choose another"
    assert ask(b"\xff")[0] == messages.ERROR
    assert ask(b"new") == (messages.EXIT, bytes(4))
    router.from_client(router.join(), frame(messages.EXEC, b"cmd=b\0"))
    rows = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [(row["event"], row["sandbox"]) for row in rows] == [("ready", "before"), ("exec", "new")]
    router.stop(10)
    assert ask(b"late")[0] == messages.ERROR
