"""oras-py's client for publishing, with the runner's session, credentials, deadlines and retries.

What is oras's: Registry.do_request, which asks, has a challenge answered, and asks again. What is ours, because oras 0.2.43
lets credentials travel or waits for ever: its retry decorator is bypassed (`__wrapped__`), and session and answer are
the runner's. The runner itself does without oras, which takes longer to load than a small disk to fetch.
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
    """do_request takes tokens from its own class only. oras's own answer never renews one and knows no basic challenge."""


class OrasClient(RegistryClient):
    """A RegistryClient whose exchanges are oras's. Safe to use from several threads."""

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
