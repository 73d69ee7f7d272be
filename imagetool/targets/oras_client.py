"""Send through oras-py, with our own session, credentials, deadlines and retries.

From oras comes Registry.do_request: send, answer a challenge, send again. Its retry decorator is bypassed (`__wrapped__`), and
session and authentication are ours, because oras 0.2.43 sends credentials to other hosts and can wait forever. Loading it
takes longer than fetching a small disk. So only `PushClient` loads it, when something is sent.
"""

from __future__ import annotations

from typing import Any

import oras.auth
import oras.provider
import requests

from rootdisk.registry.challenges import Auth
from rootdisk.registry.client import RegistryClient


class _Auth(oras.auth.TokenAuth):  # type: ignore[misc]
    """Our Auth as the class that do_request expects. That of oras never renews a token and has no basic authentication."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    @property
    def token(self) -> str | None:
        """The current Authorization value, or None."""
        return self._auth.token

    def get_auth_header(self) -> dict[str, str]:
        """Return the current Authorization header; {} if there is none."""
        return self._auth.get_auth_header()

    def authenticate_request(
        self, original: requests.Response, headers: dict[str, str], refresh: bool = False
    ) -> tuple[dict[str, str], bool]:
        """Handle a response 401 or 403: return the headers for another try, and True."""
        return self._auth.authenticate_request(original, headers, refresh)


class OrasSender:
    """Sends requests of `client` through oras. Threads may share it."""

    def __init__(self, client: RegistryClient) -> None:
        self._oras = oras.provider.Registry(client.base.host, insecure=client.options.plain_http)
        self._oras.session = client.session
        self._oras.auth = _Auth(client.auth)

    def send(self, method: str, url: str, headers: dict[str, str], data: Any) -> requests.Response:
        """Send a request and return the open response."""
        response: requests.Response = oras.provider.Registry.do_request.__wrapped__(
            self._oras, url, method, data=data, headers=headers, stream=True
        )
        return response
