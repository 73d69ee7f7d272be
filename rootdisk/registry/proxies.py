"""Which proxy a URL is asked through: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, read as Go's programs read them.

This host is never asked through a proxy. NO_PROXY: `*`, names (`example.com` and what is below it; `.example.com` only
what is below it), addresses, networks as 10.0.0.0/8, each but the last with a port or without.
"""

from __future__ import annotations

import ipaddress
import os
import re

from rootdisk.errors import BadInput, RegistryError
from rootdisk.urls import Url, parse_url


def proxy_for(url: Url) -> str | None:
    """The proxy's URL, with its user and password; None for none."""
    if is_local(url.host) or is_listed(url.host, url.port, _variable("no_proxy")[1]):
        return None
    name, text = _variable(f"{url.scheme}_proxy")
    if not text:
        name, text = _variable("all_proxy")
    return _checked(name, text) if text else None


def is_local(host: str) -> bool:
    """Whether `host` is this machine by its name or address."""
    name = host.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_listed(host: str, port: int, listed: str) -> bool:
    """Whether `listed`, written as NO_PROXY is, has `host`."""
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
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d{1,5}))?", item)
    name, wanted = (found[1], found[2]) if found else (item, None)
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
    """Lower case first, as curl. HTTP_PROXY is not read in a CGI program, where a client's header sets it."""
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
        raise BadInput(f"{name}: a proxy that is not spoken to", "write http://HOST:PORT or https://HOST:PORT")
    try:
        url = parse_url(f"{scheme}://{place}")
    except RegistryError as err:
        raise BadInput(f"{name}: {err.message}", "write http://HOST:PORT or https://HOST:PORT") from None
    return f"{url.scheme}://{user}{at}{url.authority}"
