"""Choose the proxy for a URL from HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, like Go programs.

Requests to this host never use a proxy. NO_PROXY lists `*`, names (`example.com` includes its subdomains, `.example.com`
means only its subdomains), addresses, and networks such as 10.0.0.0/8. All except networks may have a port.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re

from rootdisk.errors import BadInput, RegistryError
from rootdisk.parsing.urls import Url, parse_url

_FORM = "write http://HOST:PORT or https://HOST:PORT; in user and password, / is %2F and @ is %40"


def proxy_for(url: Url) -> str | None:
    """Return the URL of the proxy for `url`, with user and password, or None.

    Raises:
        BadInput: A variable does not contain a URL of a proxy.
    """
    if is_local(url.host) or is_listed(url.host, url.port, _variable("no_proxy")[1]):
        return None
    name, text = _variable(f"{url.scheme}_proxy")
    if not text:
        name, text = _variable("all_proxy")
    return _checked(name, text) if text else None


@functools.lru_cache(maxsize=64)
def is_local(host: str) -> bool:
    """Return whether `host` is a name or address of the loopback interface."""
    name = host.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_listed(host: str, port: int, listed: str) -> bool:
    """Return whether `listed`, in the syntax of NO_PROXY, contains `host`."""
    return any(_matches(host.removesuffix("."), port, item) for item in listed.lower().replace(",", " ").split())


def _matches(host: str, port: int, item: str) -> bool:
    if item == "*":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is not None and "/" in item:
        try:
            return address in ipaddress.ip_network(item, strict=False)
        except ValueError:
            return False
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::([0-9]{1,5}))?", item)
    name, wanted = (match[1], match[2]) if match else (item, None)
    if wanted and int(wanted) != port:
        return False
    if address is not None:
        try:
            return address == ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
    name = name.removeprefix("*").removesuffix(".")
    if name.startswith("."):
        return host.endswith(name) and len(name) > 1
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _variable(name: str) -> tuple[str, str]:
    """Read a variable, lower case first like curl. CGI programs ignore HTTP_PROXY: a header of the client sets it."""
    upper = name.upper()
    if upper == "HTTP_PROXY" and "REQUEST_METHOD" in os.environ:
        return name, os.environ.get(name, "").strip()
    return (name if os.environ.get(name) else upper), (os.environ.get(name) or os.environ.get(upper) or "").strip()


def _checked(name: str, text: str) -> str:
    scheme, colon, rest = text.partition("://")
    if not colon:
        scheme, rest = "http", text
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, place = authority.rpartition("@")
    if scheme.lower() not in ("http", "https") or re.search(r"[^!-~]", user):
        raise BadInput(f"{name}: the URL of the proxy is not supported", _FORM)
    try:
        url = parse_url(f"{scheme}://{place}")
    except RegistryError:  # its message may show a part of the password
        raise BadInput(f"{name}: its host or port is not valid", _FORM) from None
    return f"{url.scheme}://{user}{at}{url.authority}"
