"""Lists of a registry that go on without end, and how the next page of one is named."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest

from imagetool.targets import registry
from imagetool.targets.open import open_target
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Digest
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from rootdisk.places import open_repository
from rootdisk.registry.pages import next_page
from tests.support.registry import QuietHandler, serve

PLAIN = RegistryOptions(plain_http=True)


@pytest.mark.parametrize(
    ("link", "wanted"),
    [
        ("", ""),
        ('</v2/a>; rel="next"', "/v2/a"),
        ("</v2/a>;rel=next", "/v2/a"),
        ('</a>; rel="first", </b>; rel="next"', "/b"),
        ('</a>; rel="prev", </b>; title="x, y"; rel="next last"', "/b"),
        ("</a> ; REL = NEXT", "/a"),
        ("</a>; rel=nextish, </b>; rel=prev", ""),
        ('</a>; rel="prev"; rel="next"', ""),
        ("</a>", ""),
        ("a; rel=next", ""),
    ],
)
def test_how_the_next_page_is_named(link: str, wanted: str) -> None:
    assert next_page(link) == wanted


@pytest.mark.parametrize("where", ["the same", "always another", "another host"])
@pytest.mark.parametrize("what", ["tags", "referrers"])
def test_lists_without_end(what: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No page has an entry, so that what is counted never gets more."""
    monkeypatch.setattr(registry, "TAGS_PAGES_MAX", 20)
    count = itertools.count()
    places: dict[str, Callable[[str], str]] = {
        "the same": lambda path: path,
        "always another": lambda path: f"{path.partition('?')[0]}?page={next(count)}",
        "another host": lambda path: f"http://127.0.0.1:1{path}",
    }

    class Endless(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            body = {"schemaVersion": 2, "tags": [], "manifests": []}
            self.send(200, json.dumps(body).encode(), Link=f'<{places[where](self.path)}>; rel="next"')

    with serve(Endless) as url:
        reference = parse_reference(f"{url.removeprefix('http://')}/a/b")
        ask: Callable[[], object] = {
            "tags": lambda: open_target(reference, PLAIN).tags(),
            "referrers": lambda: open_repository(reference, PLAIN).referrers(Digest.of(b"x")),
        }[what]
        with pytest.raises(BadInput, match="does not end"):
            ask()
