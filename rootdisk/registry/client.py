"""HTTP client for one repository of one registry, with authentication, deadlines and retries.

http.py follows redirects, challenges.py authenticates. Each of these rules is enforced in one place:

- Authorization goes only to the origin of the registry, never after a redirect to another origin, never from ~/.netrc.
- Credentials go only to the registry or to the token service that its challenge names, over https unless plain HTTP was
  requested.
- Responses are streamed and bounded. Every wait ends. Only temporary failures are retried.
- Errors never contain a query string (presigned URLs contain secrets) or a header.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import urlencode

from rootdisk.errors import RegistryError
from rootdisk.oci.reference import DOCKER_HUB
from rootdisk.oci.repository import RegistryOptions
from rootdisk.parsing.urls import Url, parse_url
from rootdisk.registry.answers import (
    Response,
    TryLater,
    Unreachable,
    artifact_of,
    read_bounded,
    status_error,
)
from rootdisk.registry.challenges import Auth
from rootdisk.registry.connections import Payload
from rootdisk.registry.http import Session
from rootdisk.registry.messages import Headers

MAX_ATTEMPTS = 6

T = TypeVar("T")


class Retry:
    """Decides whether and when to retry: back-off, Retry-After, and a limit of `give_up_s` seconds without progress."""

    def __init__(self, give_up_s: float, stopped: threading.Event) -> None:
        self._give_up_s = give_up_s
        self._stopped = stopped
        self.progress()

    def progress(self) -> None:
        """Reset attempts and deadline: something useful has arrived."""
        self._attempts = 0
        self._deadline = time.monotonic() + self._give_up_s

    def wait(self, err: RegistryError) -> None:
        """Sleep until the next attempt, or raise `err` if there will not be one."""
        import random  # seldom needed

        self._attempts += 1
        pause = min(0.5 * 2 ** (self._attempts - 1), 10) * random.uniform(0.8, 1.2)
        if isinstance(err, TryLater):
            pause = max(pause, err.after_s)
        # Waiting seldom helps if a name does not resolve or a port is closed: try once more only.
        limit = 2 if isinstance(err, Unreachable) else MAX_ATTEMPTS
        if not err.temporary or self._attempts >= limit or time.monotonic() + pause > self._deadline:
            raise err
        if self._stopped.wait(pause):
            raise err

    def run(self, action: Callable[[], T]) -> T:
        """Call `action` until it succeeds or raises an error that must not be retried."""
        while True:
            try:
                return action()
            except RegistryError as err:
                self.wait(err)


class RegistryClient:
    """Sends requests below `/v2/REPOSITORY/`. Threads may share it."""

    def __init__(self, registry: str, repository: str, options: RegistryOptions, namespace: str = "") -> None:
        """Prepare for requests. `namespace` is the registry for which this one is a mirror."""
        self._namespace = namespace
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
        """Close all connections."""
        self.session.close()

    def interrupt(self) -> None:
        """Abort all requests in other threads. No request is possible afterwards."""
        self._watch.stop()

    def retry(self, give_up_s: float | None = None) -> Retry:
        """Return a new retry policy; default limit from the options."""
        return Retry(give_up_s or self.options.give_up_s, self._watch.stopped)

    def url(self, path: str) -> Url:
        """Resolve a path below the repository, or a Location header."""
        return self.base.join(path)

    def request(
        self,
        method: str,
        path: str,
        *,
        expect: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        data: bytes | Payload | None = None,
    ) -> Response:
        """Send one request, without retry, and return the open response. The caller reads and closes it.

        Raises:
            RegistryError: The status is not in `expect`, or there was no response.
        """
        place = self.url(path)
        if self._namespace and place.origin == self.base.origin:
            place = place.with_query(urlencode({"ns": self._namespace}))
        response = self._exchange(method, place, dict(headers or {}), data)
        if response.status in expect:
            return response
        with response:
            hint = self.auth.hint if response.status in (401, 403) else ""
            raise status_error(method, response, artifact_of(str(place)), hint)

    def _exchange(self, method: str, url: Url, headers: dict[str, str], data: bytes | Payload | None) -> Response:
        """Send a request with the current authorization. Answer a challenge once and send it again."""
        if (token := self.auth.token) is not None:
            headers["Authorization"] = token
        response = self.session.request(method, url, headers, data)
        if response.status in (401, 403):
            headers = self.auth.authenticate(response, headers)
            response = self.session.request(method, url, headers, data)
        if response.status == 403:  # possible now for the target of a redirect
            self.auth.authenticate(response, headers)
        return response

    def get(self, path: str, max_bytes: int, headers: Mapping[str, str]) -> tuple[bytes, Headers]:
        """Return a small document of at most `max_bytes` and its headers, with retries."""

        def once() -> tuple[bytes, Headers]:
            """Ask once."""
            with self.request("GET", path, expect=(200,), headers=headers) as response:
                return read_bounded(response, max_bytes), response.headers

        return self.retry().run(once)
