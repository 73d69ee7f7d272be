"""Restart policies, as docker's: after which ends a detached sandbox starts again, and how long its keeper waits before that.

The keeper does it, so a restart needs no daemon. It waits longer from time to time, from a tenth of a second to a minute; a run of
ten seconds counts as good, and the waits begin again. While it waits it holds the sandbox's lock and answers its clients.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from typing import NamedTuple

from rootdisk.errors import BadInput
from rootdisk.text import printable
from runner.channel import messages
from runner.channel.messages import GuestError
from runner.sandbox.state import BY_HOST, BY_USER, State

FIRST_S, LONGEST_S = 0.1, 60.0  # docker's
GOOD_S = 10.0
KINDS = ("no", "on-failure", "always", "unless-stopped")
_COUNT_MAX = 1_000_000
_WAITING_MAX = 64  # clients that wait for the next end
_REQUEST_S = 2.0  # for a client that has connected to send what it wants


class Policy(NamedTuple):
    """A restart policy; `most` is how many restarts in a row on-failure allows, 0 for any number."""

    kind: str = "no"
    most: int = 0

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Parse the value of --restart.

        Raises:
            BadInput: It is not a policy.
        """
        kind, colon, count = text.partition(":")
        if kind not in KINDS or (colon and kind != "on-failure"):
            raise BadInput(f"--restart {printable(text, 40)!r}", "no, on-failure[:N], always or unless-stopped")
        if colon and not (re.fullmatch("[0-9]{1,7}", count) and 0 < int(count) <= _COUNT_MAX):
            raise BadInput(f"--restart {printable(text, 40)!r}", f"on-failure:N, with N from 1 to {_COUNT_MAX}")
        return cls(kind, int(count or 0))

    def starts_with_host(self, state: State) -> bool:
        """Return whether `runner start --all` starts a sandbox that does not run."""
        if self.kind == "on-failure":  # its program did not end by itself, or would have been started again
            return state.ended_by == BY_HOST or state.is_cut_off
        return self.kind == "always" or (self.kind == "unless-stopped" and state.ended_by != BY_USER)


class Restarts:
    """Counts the restarts of one sandbox."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._count = 0
        self._wait_s = FIRST_S
        self.has_begun = False  # it has started again at least once

    def wait_s(self, status: int, ran_s: float) -> float | None:
        """Return the seconds to wait before the next start; None if there is none. The run ended with `status` after `ran_s`."""
        if ran_s >= GOOD_S:
            self._count, self._wait_s = 0, FIRST_S
        if self._policy.kind == "no" or (self._policy.kind == "on-failure" and not status):
            return None
        if self._policy.most and self._count >= self._policy.most:
            return None
        self._count += 1
        self.has_begun = True
        seconds, self._wait_s = self._wait_s, min(2 * self._wait_s, LONGEST_S)
        return seconds


def rest(listener: socket.socket, seconds: float, name: str) -> bool:
    """Answer clients for `seconds`. Return False at once if one of them tells the sandbox to end.

    Who waits for the next end is disconnected when the sandbox starts or ends, and asks again then.
    """
    end = time.monotonic() + seconds
    answer = messages.frame(messages.ERROR, f"sandbox {name} is about to start again".encode())
    with contextlib.ExitStack() as waiting:
        places = _WAITING_MAX
        while (left := end - time.monotonic()) > 0:
            listener.settimeout(left)
            try:
                client, _ = listener.accept()
            except TimeoutError:
                break
            except OSError:  # no descriptor is free
                time.sleep(min(left, 0.2))
                continue
            with contextlib.ExitStack() as held, contextlib.suppress(OSError, GuestError):
                held.enter_context(client)
                wish = _first_frame(client, min(left, _REQUEST_S))
                if wish in (messages.STOP, messages.KILL):
                    return False
                if wish == messages.WAIT and places:
                    places -= 1
                    waiting.push(held.pop_all())
                else:
                    client.sendall(answer)
    return True


def _first_frame(client: socket.socket, seconds: float) -> int | None:
    """Return the kind of the first frame of a client; None if it sends none."""
    decoder, end = messages.Decoder(messages.FROM_CLIENT), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        client.settimeout(left)
        if not (data := client.recv(4096)):
            break
        for kind, _, _ in decoder.feed(data):
            return kind
    return None


def nobody() -> socket.socket:
    """Return the connection of a main client that has gone: that of a sandbox which starts again."""
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours
