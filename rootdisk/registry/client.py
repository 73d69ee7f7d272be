"""HTTP to one repository of one registry: ask, answer a challenge, ask again; with deadlines and retries.

Redirects are followed by registry_session.py, challenges are answered by registry_auth.py. The rules, enforced in one
place each:

- Authorization is sent to the registry's own origin only; never after a redirect, never from ~/.netrc.
- Credentials go to the registry, or to the token service its challenge names; https both, unless plain http was asked.
- Every answer is streamed and read with a bound; every wait has an end; only temporary failures are tried again.
- No query string (presigned URLs hold secrets) and no header is ever part of an error.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import requests
import urllib3

from rootdisk.errors import RegistryError
from rootdisk.oci.reference import DOCKER_HUB
from rootdisk.oci.repository import RegistryOptions
from rootdisk.registry.answers import TryLater, Unreachable, network_error, read_bounded, status_error
from rootdisk.registry.challenges import Auth
from rootdisk.registry.http import Session
from rootdisk.urls import Url, parse_url

MAX_ATTEMPTS = 6

T = TypeVar("T")


class Retry:
    """Decides whether and when to try again: back-off, Retry-After, and an end after `give_up_s` without progress."""

    def __init__(self, give_up_s: float, stopped: threading.Event) -> None:
        self._give_up_s = give_up_s
        self._stopped = stopped
        self.progress()

    def progress(self) -> None:
        """Something worth keeping arrived: start counting again."""
        self._attempts = 0
        self._deadline = time.monotonic() + self._give_up_s

    def wait(self, err: RegistryError) -> None:
        """Sleep until the next attempt; raises `err` where there should be none."""
        self._attempts += 1
        pause = min(0.5 * 2 ** (self._attempts - 1), 10) * random.uniform(0.8, 1.2)
        if isinstance(err, TryLater):
            pause = max(pause, err.after_s)
        # A name that does not resolve or a closed port seldom gets better by waiting: one more try.
        limit = 2 if isinstance(err, Unreachable) else MAX_ATTEMPTS
        if not err.temporary or self._attempts >= limit or time.monotonic() + pause > self._deadline:
            raise err
        if self._stopped.wait(pause):
            raise err

    def run(self, action: Callable[[], T]) -> T:
        while True:
            try:
                return action()
            except RegistryError as err:
                self.wait(err)


class RegistryClient:
    """Requests below `/v2/REPOSITORY/`. Safe to use from several threads."""

    def __init__(self, registry: str, repository: str, options: RegistryOptions) -> None:
        self.name = f"{registry}/{repository}"
        self.options = options
        host = "registry-1.docker.io" if registry == DOCKER_HUB else registry
        self.base = parse_url(f"{'http' if options.plain_http else 'https'}://{host}/v2/{repository}/")
        self.session = Session(self.base, options)
        self._watch = self.session.watch
        self.auth = self._make_auth(registry, repository)

    def _make_auth(self, registry: str, repository: str) -> Auth:
        return Auth(registry, repository, self.session, self.options)

    def close(self) -> None:
        self.session.close()

    def interrupt(self) -> None:
        """End all requests under way, from another thread; nothing can be asked afterwards."""
        self._watch.stop()

    def retry(self, give_up_s: float | None = None) -> Retry:
        return Retry(give_up_s or self.options.give_up_s, self._watch.stopped)

    def url(self, path: str) -> Url:
        """`path` below the repository, or where a Location header leads."""
        return self.base.join(path)

    def request(
        self,
        method: str,
        path: str,
        *,
        expect: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        data: Any = None,
    ) -> requests.Response:
        """One attempt: the open, streamed answer, its status one of `expect`; RegistryError otherwise.

        The caller reads with `read_bounded` or from `raw`, and closes.
        """
        url = str(self.url(path))
        try:
            response = self._exchange(method, url, dict(headers or {}), data)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as err:
            raise network_error(method, url, err) from None
        if response.status_code in expect:
            return response
        with response:
            raise status_error(method, response, self.name)

    def _exchange(self, method: str, url: str, headers: dict[str, str], data: Any) -> requests.Response:
        """Ask, with the authorization there is; asked for another, answer the challenge and ask again."""
        if self.auth.token is not None:
            headers.update(self.auth.get_auth_header())
        response = self.session.request(method, url, headers=headers, data=data)
        if response.status_code in (401, 403):
            headers, _ = self.auth.authenticate_request(response, headers)
            response = self.session.request(method, url, headers=headers, data=data)
        if response.status_code == 403:  # which a redirect's target may say when its turn has come
            self.auth.authenticate_request(response, headers)
        return response

    def get(self, path: str, max_bytes: int, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
        """A small document and its headers, with retries."""

        def once() -> tuple[bytes, Mapping[str, str]]:
            with self.request("GET", path, expect=(200,), headers=headers) as response:
                return read_bounded(response, max_bytes), response.headers

        return self.retry().run(once)
