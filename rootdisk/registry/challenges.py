"""Answer the authentication challenges of registries.

Credentials go only to the registry or to the token service that its challenge names, and only over https unless plain
HTTP was requested.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from rootdisk.errors import BadInput, RegistryError
from rootdisk.oci.documents import parse_json
from rootdisk.oci.repository import RegistryOptions
from rootdisk.parsing.urls import parse_url
from rootdisk.registry.answers import Response, read_bounded, status_error, told
from rootdisk.registry.http import Session
from rootdisk.text import printable

if TYPE_CHECKING:  # and loaded where a registry asks for them
    from rootdisk.registry.credentials import Credentials

TOKEN_MAX_BYTES = 1 << 20
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Auth:
    """Answers challenges of one registry (RFC 7235; token and oauth2 specifications of distribution).

    It keeps one Authorization value: that for the last challenge, which names the widest scope requested. If a registry needs
    another one, it sends another challenge.
    """

    def __init__(self, registry: str, repository: str, session: Session, options: RegistryOptions) -> None:
        self._registry, self._repository = registry, repository
        self._session, self._plain_http = session, options.plain_http
        self._lock = threading.Lock()
        self._value = ""
        self._expires = 0.0
        self._where = ""  # the file of the credentials that were used

    @property
    def token(self) -> str | None:
        """The current Authorization value, or None if there is none or it is about to expire."""
        return self._value if self._value and time.monotonic() < self._expires else None

    def authenticate(self, original: Response, headers: Mapping[str, str]) -> dict[str, str]:
        """Handle a response 401 or 403 to a request with `headers`: return the headers for another try.

        Raises:
            RegistryError: The challenge cannot be answered, or access is denied.
        """
        method, url, status = original.method, original.url, original.status
        if url.origin != self._session.origin:
            original.close()
            # An expired presigned URL. The registry returns a new one for another request.
            raise RegistryError(told(method, str(url), f"{status}, after a redirect"), temporary=True, status=status)
        if status == 403:
            with original:
                raise status_error(method, original, f"{self._registry}/{self._repository}", self.hint)
        original.close()
        with self._lock:
            # Another thread may have done it already.
            if not self.token or headers.get("Authorization") == self._value:
                self._value, lifetime = self._answer(original.headers.get("WWW-Authenticate"))
                self._expires = time.monotonic() + lifetime * 0.75
            return {**headers, "Authorization": self._value}

    def _answer(self, header: str) -> tuple[str, float]:
        """Return an Authorization value and its lifetime in seconds."""
        challenges = parse_challenges(header)
        credentials = self._credentials()
        if "bearer" in challenges:
            if credentials is not None and credentials.registry_token:
                return f"Bearer {credentials.registry_token}", float("inf")
            return self._bearer(challenges["bearer"], credentials)
        if "basic" in challenges:
            if credentials is None or not credentials.username:
                raise RegistryError(f"{self._registry} requires a login", self.hint, status=401)
            return credentials.basic, float("inf")
        raise RegistryError(f"{self._registry}: its kind of authentication is not supported", status=401)

    def _credentials(self) -> Credentials | None:
        from rootdisk.registry.credentials import find_credentials

        credentials = find_credentials(self._registry, self._repository)
        self._where = credentials.where if credentials is not None else ""
        return credentials

    @property
    def hint(self) -> str:
        """The advice if the registry refuses: which credentials it got, from which file."""
        login = f"log in: runner login {self._registry} (or docker, podman or skopeo login)"
        return (
            f"the credentials for {self._registry} are from {printable(self._where)}; {login}" if self._where else login
        )

    def _bearer(self, challenge: Mapping[str, str], credentials: Credentials | None) -> tuple[str, float]:
        try:
            realm = parse_url(challenge.get("realm", ""))
        except RegistryError as err:
            raise RegistryError(f"{self._registry}: its token service is refused: {err.message}") from None
        if realm.scheme != "https" and not self._plain_http:
            raise RegistryError(f"{self._registry}: its token service is refused: {realm.shown}: not https")
        fields = {key: challenge[key] for key in ("service", "scope") if key in challenge}
        if credentials is not None and credentials.identity_token:
            fields |= {
                "grant_type": "refresh_token",
                "client_id": "rootdisk",
                "refresh_token": credentials.identity_token,
            }
            method, place, headers, data = "POST", realm, _FORM, urlencode(fields).encode()
        else:
            headers = {"Authorization": credentials.basic} if credentials is not None else {}
            method, place, data = "GET", realm.with_query(urlencode(fields)), b""
        try:
            response = self._session.once(method, place, headers, data or None)
        except RegistryError as err:
            err.message = f"token service of {self._registry}: {err.message}"
            raise
        with response:
            if response.status != 200:
                raise status_error(method, response, f"token service of {self._registry}", self.hint)
            raw = read_bounded(response, TOKEN_MAX_BYTES)
        token, lifetime = _token(raw)
        if not re.fullmatch(r"[!-~]+", token):
            raise RegistryError(f"token service of {self._registry}: no token in its answer", self.hint)
        return f"Bearer {token}", lifetime


def _token(raw: bytes) -> tuple[str, float]:
    """Return the token in the answer of a token service ("" if there is none) and its lifetime in seconds."""
    try:
        answer = parse_json(raw, "token service", TOKEN_MAX_BYTES)
    except BadInput:
        return "", 0
    token = answer.get("token") or answer.get("access_token")
    lifetime = answer.get("expires_in")
    if not isinstance(lifetime, int | float) or not lifetime > 0:
        lifetime = 60  # the specification's default
    return (token if isinstance(token, str) else ""), float(min(max(lifetime, 10), 86400))


def parse_challenges(header: str) -> dict[str, dict[str, str]]:
    """Parse WWW-Authenticate to parameters by scheme, names in lower case; RFC 7235 section 4.1.

    If a scheme or parameter is repeated, the first counts.
    """
    challenges: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    token = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
    for match in re.finditer(rf'({token})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({token}))|({token})', header[:8192]):
        name, quoted, plain, scheme = match.groups()
        if scheme:
            current = {}
            challenges.setdefault(scheme.lower(), current)
        else:
            current.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain)
    return challenges
