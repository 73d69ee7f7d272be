"""The one parser of URLs: what decides about a URL and what connects to it see the same scheme, host and port.

RFC 3986, and strict: two parsers that read `http://evil\\@registry/` in two ways send a token to the wrong host. So what
other parsers could read otherwise (user names, backslashes, control characters, odd spellings of an IPv4 address) is
refused, and requests is given the text that this parser writes, never the text that a registry sent.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import quote, urljoin

from rootdisk.errors import RegistryError
from rootdisk.text import printable

URL_MAX = 8192  # characters; presigned URLs have some 2,000
_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(https?)://([^/?#]*)(/[^?#]*)?(\?[^#]*)?(?:#.*)?\Z", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?\Z")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")  # a last label that makes getaddrinfo read an address
_NEVER = re.compile(r"[\\\x00-\x1f\x7f]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_KEPT = "!#$%&'()*+,/:;=?@[]~"  # in path and query as they are; the rest is percent-encoded


class Url(NamedTuple):
    """A URL that may be asked for: http or https, without user, password and fragment."""

    scheme: str
    host: str  # lower case; of an IPv6 address the short form, without brackets
    port: int
    path: str  # begins with "/"
    query: str  # with its "?", or ""

    @property
    def origin(self) -> tuple[str, str, int]:
        """What credentials are bound to."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """Host, and port if it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """Host and path: a query may hold secrets."""
        return printable(f"{self.authority}{self.path}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}{self.query}"

    def join(self, reference: str) -> Url:
        """Where `reference` leads from here; RFC 3986, section 5."""
        text = reference.strip(" \t")
        _check_characters(text)
        if _SCHEME.match(text):
            return parse_url(text)
        if text.startswith("//"):
            return parse_url(f"{self.scheme}:{text}")
        return parse_url(urljoin(str(self), text))._replace(scheme=self.scheme, host=self.host, port=self.port)

    def with_query(self, more: str) -> Url:
        return self._replace(query=f"{self.query}&{more}" if len(self.query) > 1 else f"?{more}")


def parse_url(text: str) -> Url:
    """The URL that `text` is; RegistryError says why it is none, or none to be asked for."""
    _check_characters(text)
    found = _URL.match(text)
    if not found:
        raise _refused(text, "only http:// and https:// are spoken" if _SCHEME.match(text) else "it has no scheme")
    scheme, authority, path, query = found.groups()
    if "@" in authority:
        raise _refused(text, "a URL with a user name is not asked for")
    parts = _AUTHORITY.match(authority)
    if not parts:
        raise _refused(text, "its host or port is not valid")
    scheme = scheme.lower()
    # RFC 3986 takes any number of zeros before it; six digits are enough to see that it is too large.
    port = int(parts[2].lstrip("0")[:6] or "0") if parts[2] else _PORTS[scheme]
    if not 0 < port < 65536:
        raise _refused(text, "its port is not between 1 and 65535")
    host = normal_host(parts[1])
    if host is None:
        raise _refused(text, "its host is not valid")
    return Url(scheme, host, port, _encoded(path or "/"), _encoded(query or ""))


def normal_host(text: str) -> str | None:
    """The host that `text` (an IPv6 address in brackets) names, in one spelling; None if it is none.

    Names outside of ASCII are refused: a domain has an ASCII form, xn--…, and two libraries may make two of it.
    """
    if text.startswith("["):
        try:
            address = ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            return None
        if address.scope_id:
            return None
        # As Python writes it since 3.13, and RFC 5952 asks for.
        return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else address.compressed
    host = text.lower()
    labels = host.removesuffix(".").split(".")
    if not host.isascii() or len(host) > 253 or not all(map(_LABEL.match, labels)):
        return None
    if _NUMBER.match(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:  # 127.1, 0x7f.0.0.1, 2130706433: getaddrinfo reads them, others do not
            return None
    return host


def redact(text: str) -> str:
    """Host and path of what may be no URL at all: no user, password, query or fragment."""
    return printable(re.sub(r"^[A-Za-z0-9+.-]*:?//(?:.*@)?", "", re.split(r"[?#]", text, maxsplit=1)[0]))


def _check_characters(text: str) -> None:
    if len(text) > URL_MAX:
        raise RegistryError(f"a URL of {len(text)} characters: more than the {URL_MAX} allowed")
    if _NEVER.search(text):
        raise _refused(text, "it has a backslash or a control character")


def _refused(text: str, why: str) -> RegistryError:
    return RegistryError(f"{redact(text) or 'an empty URL'}: {why}")


def _encoded(text: str) -> str:
    """`text` with what a request line cannot hold percent-encoded. Headers are read as Latin-1, so bytes as they came."""
    if not re.search(r"[^!-~]", text):
        return quote(text, safe=_KEPT)
    try:
        return quote(text.encode("latin-1"), safe=_KEPT)
    except UnicodeEncodeError:
        return quote(text.encode("utf-8", "replace"), safe=_KEPT)
