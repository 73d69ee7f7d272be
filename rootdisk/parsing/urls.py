"""The only URL parser: checks and connections always see the same scheme, host and port.

It follows RFC 3986 strictly. If two parsers read `http://evil\\@registry/` differently, a token goes to the wrong host. So
everything that other parsers may read differently is refused: user names, backslashes, control characters, unusual
spellings of IPv4 addresses. A connection leads to the host that this parser has read, and a request has the text that it writes.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import NamedTuple
from urllib.parse import quote, urljoin

from rootdisk.errors import RegistryError
from rootdisk.text import printable

URL_MAX = 8192  # characters; presigned URLs have about 2,000
_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(https?)://([^/?#]*)(/[^?#]*)?(\?[^#]*)?(?:#.*)?\Z", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?\Z")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")  # with such a last label, getaddrinfo reads an IPv4 address
_NEVER = re.compile(r"[\\\x00-\x1f\x7f]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_KEPT = "!#$%&'()*+,/:;=?@[]~"  # kept in path and query; everything else is percent-encoded


class Url(NamedTuple):
    """A URL that may be requested: http or https, without user name, password and fragment."""

    scheme: str
    host: str  # lower case; an IPv6 address in its short form, without brackets
    port: int
    path: str  # begins with "/"
    query: str  # with its "?", or ""

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: the scope of credentials."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """Host, and the port if it is not the default of the scheme."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """Host and path, for messages: a query may contain secrets."""
        return printable(f"{self.authority}{self.path}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}{self.query}"

    def join(self, reference: str) -> Url:
        """Resolve the relative or absolute URL `reference` against this one; RFC 3986, section 5."""
        text = reference.strip(" \t")
        _check_characters(text)
        if _SCHEME.match(text):
            return parse_url(text)
        if text.startswith("//"):
            return parse_url(f"{self.scheme}:{text}")
        return parse_url(urljoin(str(self), text))._replace(scheme=self.scheme, host=self.host, port=self.port)

    def with_query(self, more: str) -> Url:
        """Return this URL with `more` added to its query."""
        return self._replace(query=f"{self.query}&{more}" if len(self.query) > 1 else f"?{more}")


def parse_url(text: str) -> Url:
    """Parse a URL.

    Raises:
        RegistryError: `text` is not a URL, or not one that may be requested.
    """
    _check_characters(text)
    match = _URL.match(text)
    if not match:
        raise _refused(text, "only http:// and https:// are supported" if _SCHEME.match(text) else "it has no scheme")
    scheme, authority, path, query = match.groups()
    if "@" in authority:
        raise _refused(text, "a URL with a user name is refused")
    parts = _AUTHORITY.match(authority)
    if not parts:
        raise _refused(text, "its host or port is not valid")
    scheme = scheme.lower()
    # RFC 3986 allows any number of leading zeros. Six digits are enough to see that a port is too large.
    port = int(parts[2].lstrip("0")[:6] or "0") if parts[2] else _PORTS[scheme]
    if not 0 < port < 65536:
        raise _refused(text, "its port is not between 1 and 65535")
    host = normal_host(parts[1])
    if host is None:
        raise _refused(text, "its host is not valid")
    return Url(scheme, host, port, _encoded(path or "/"), _encoded(query or ""))


@functools.lru_cache(maxsize=64)  # each request parses a URL, of few hosts
def normal_host(text: str) -> str | None:
    """Return the normal form of a host name or address (IPv6 in brackets), or None if it is not valid.

    Names that are not ASCII are refused: two libraries may encode them differently. Use the ASCII form, xn--….
    """
    if text.startswith("["):
        try:
            address = ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            return None
        if address.scope_id:
            return None
        # The form of RFC 5952; Python writes it since 3.13.
        return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else address.compressed
    host = text.lower()
    labels = host.removesuffix(".").split(".")
    if not host.isascii() or len(host) > 253 or not all(map(_LABEL.match, labels)):
        return None
    if _NUMBER.match(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:  # 127.1, 0x7f.0.0.1, 2130706433: only getaddrinfo accepts them
            return None
    return host


def redact(text: str) -> str:
    """Return host and path of `text`, without user, password, query and fragment. `text` need not be a valid URL."""
    return printable(re.sub(r"^[A-Za-z0-9+.-]*:?//(?:.*@)?", "", re.split(r"[?#]", text, maxsplit=1)[0]))


def _check_characters(text: str) -> None:
    if len(text) > URL_MAX:
        raise RegistryError(f"a URL has {len(text)} characters; at most {URL_MAX} are allowed")
    if _NEVER.search(text):
        raise _refused(text, "it contains a backslash or a control character")


def _refused(text: str, why: str) -> RegistryError:
    return RegistryError(f"{redact(text) or 'an empty URL'}: {why}")


def _encoded(text: str) -> str:
    """Percent-encode what a request line cannot hold. Headers are decoded as Latin-1, so the original bytes are kept."""
    if not re.search(r"[^!-~]", text):
        return quote(text, safe=_KEPT)
    try:
        return quote(text.encode("latin-1"), safe=_KEPT)
    except UnicodeEncodeError:
        return quote(text.encode("utf-8", "replace"), safe=_KEPT)
