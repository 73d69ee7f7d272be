"""The registry client of what publishes: it reads as the runner does, and sends through oras-py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rootdisk.registry.client import RegistryClient

if TYPE_CHECKING:
    import requests

    from imagetool.targets.oras_client import OrasSender

_READS = ("GET", "HEAD", "DELETE")  # without a body


class PushClient(RegistryClient):
    """A RegistryClient that loads oras when it sends something for the first time. Threads may share it.

    What lists, deletes, or finds that everything is there already needs nothing that our own client does not do.
    """

    _sender: OrasSender | None = None

    def _exchange(self, method: str, url: str, headers: dict[str, str], data: Any) -> requests.Response:
        if method in _READS:
            return super()._exchange(method, url, headers, data)
        if self._sender is None:
            from imagetool.targets.oras_client import OrasSender

            self._sender = OrasSender(self)
        return self._sender.send(method, url, headers, data)
