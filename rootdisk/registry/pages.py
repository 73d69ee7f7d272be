"""Lists that a registry sends in pages: each names the next one in a Link header; distribution-spec, "Listing tags"."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from rootdisk.errors import BadInput
from rootdisk.oci.documents import MANIFEST_MAX_BYTES
from rootdisk.registry.client import RegistryClient

# RFC 8288, section 3: links with parameters, of which any may come first. Compiled at first use.
_LINK = r"<([^<>]*)>([^<>]*)"
_RELATION = r';\s*rel\s*=\s*(?:"([^"]*)"|([^\s",;]*))'


def pages(client: RegistryClient, path: str, headers: Mapping[str, str], what: str, count_max: int) -> Iterator[bytes]:
    """Yield the pages of the list at `path`, at most `count_max`; errors name it `what`.

    Raises:
        BadInput: It has more pages, comes back to an earlier one, or goes on at another host.
        RegistryError: The registry failed, or the next page is not a URL.
    """
    url = client.url(path)
    asked: set[str] = set()
    while True:
        if url.origin != client.base.origin or str(url) in asked or len(asked) == count_max:
            raise BadInput(f"{client.name}: {what} does not end")
        asked.add(str(url))
        raw, fields = client.get(str(url), MANIFEST_MAX_BYTES, headers)
        yield raw
        following = next_page(fields.get("Link"))
        if not following:
            return
        # Registries that name it by a relative path mean one below the repository.
        url = (url if following.startswith("?") else client.base).join(following)


def next_page(link: str) -> str:
    """Return the target of relation "next" in a Link header, or "". The relation is the first `rel` of a link."""
    for match in re.finditer(_LINK, link):
        relation = re.search(_RELATION, match[2], re.IGNORECASE)
        if relation and "next" in (relation[1] or relation[2] or "").lower().split():
            return match[1]
    return ""
