"""Publish through oras-py, with our own session, credentials, deadlines and retries.

From oras comes Registry.do_request: send, answer a challenge, send again. Its retry decorator is bypassed (`__wrapped__`), and
session and authentication are ours, because oras 0.2.43 sends credentials to other hosts and can wait forever. The runner
does not use oras: loading it takes longer than fetching a small disk.
"""

from __future__ import annotations

from typing import Any

import oras.auth
import oras.provider
import requests

from rootdisk.oci.repository import RegistryOptions
from rootdisk.registry.challenges import Auth
from rootdisk.registry.client import RegistryClient


class _Auth(Auth, oras.auth.TokenAuth):  # type: ignore[misc]
    """Our Auth as the class that do_request expects. That of oras never renews a token and has no basic authentication."""


class OrasClient(RegistryClient):
    """A RegistryClient that sends requests through oras. Threads may share it."""

    def __init__(self, registry: str, repository: str, options: RegistryOptions) -> None:
        super().__init__(registry, repository, options)
        self._oras = oras.provider.Registry(registry, insecure=options.plain_http)
        self._oras.session = self.session
        self._oras.auth = self.auth

    def _make_auth(self, registry: str, repository: str) -> Auth:
        return _Auth(registry, repository, self.session, self.options)

    def _exchange(self, method: str, url: str, headers: dict[str, str], data: Any) -> requests.Response:
        response: requests.Response = oras.provider.Registry.do_request.__wrapped__(
            self._oras, url, method, data=data, headers=headers, stream=True
        )
        return response
