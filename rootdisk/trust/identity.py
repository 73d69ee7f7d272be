"""References that a signature may name: `signedIdentity` of policy.json; containers-policy.json(5), "sigstoreSigned"."""

from __future__ import annotations

import re
from typing import NamedTuple

from rootdisk.errors import BadInput
from rootdisk.oci.fields import Fields
from rootdisk.oci.reference import Reference, parse_reference
from rootdisk.text import printable

_FIELDS = {
    "matchExact": (),
    "matchRepoDigestOrExact": (),
    "matchRepository": (),
    "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",),
    "remapIdentity": ("prefix", "signedPrefix"),
}


class Identity(NamedTuple):
    """Rule about identities; the other fields are of those that have them."""

    type: str = "matchRepoDigestOrExact"
    first: str = ""  # dockerReference, dockerRepository, prefix
    second: str = ""  # signedPrefix

    @classmethod
    def parse(cls, value: Fields) -> Identity:
        """Parse a `signedIdentity`. BadInput names an unknown part."""
        kind = value.text("type", limit=80)
        if kind not in _FIELDS:
            raise value.wrong("type", f"{kind!r:.80} is not known: {', '.join(_FIELDS)}")
        names = _FIELDS[kind]
        value.only(("type", *names), f"not a field of {kind}")
        texts = [value.text(name, limit=1024) for name in names]
        if kind in ("exactReference", "exactRepository"):
            found = _reference(texts[0])
            if found is None or (found.digest is not None) or (kind == "exactRepository" and texts[0] != found.place):
                raise value.wrong(names[0], f"{printable(texts[0], 80)!r} is not valid: registry/repository in full")
            if kind == "exactReference" and not found.tag:
                raise value.wrong(names[0], f"{printable(texts[0], 80)!r} has no tag; exactRepository needs none")
        if kind == "remapIdentity":
            for name, text in zip(names, texts, strict=True):
                has_tag = ":" in text.partition("/")[2]
                if has_tag or not re.fullmatch(r"[a-zA-Z0-9.\[\]:_/-]+", text) or text.endswith("/"):
                    raise value.wrong(name, f"{printable(text, 80)!r} is not valid")
        return cls(kind, *texts)

    def refuses(self, reference: Reference, signed: str) -> str:
        """Say why `signed`, the reference that a signature names, does not stand for `reference`; "" if it does."""
        said = _reference(signed) if signed else None
        if signed and said is None:
            return f"signed as {printable(signed, 120)!r}, which is not a reference"
        if self.type in ("exactReference", "exactRepository"):
            wanted = self.first
            got = (said.place if self.type == "exactRepository" else _named(said)) if said else ""
            return "" if got == wanted else _other(signed, wanted)
        if reference.kind != "registry":
            # A signature without a repository is of a digest, wherever it lies.
            return (
                f"signed as {printable(signed, 120)}: the policy needs signedIdentity exactRepository" if signed else ""
            )
        if self.type == "remapIdentity":
            reference = self._mapped(reference)
        place, tag = reference.place, reference.tag
        by_digest = reference.digest is not None
        if said is None:
            # cosign 3 names a digest alone. Who asks for that digest is not given another repository's thing.
            return "" if by_digest and self.type != "matchExact" else _other("", place)
        if self.type == "matchRepository" or (by_digest and self.type != "matchExact"):
            return "" if said.place == place else _other(signed, place)
        wanted = f"{place}:{tag}" if not by_digest else str(reference)
        return "" if _named(said) == wanted else _other(signed, wanted)

    def _mapped(self, reference: Reference) -> Reference:
        place = reference.place
        if place == self.first or place.startswith((f"{self.first}/", f"{self.first}:")):
            mapped = _reference(self.second + place[len(self.first) :])
            if mapped is not None:
                return reference._replace(registry=mapped.registry, repository=mapped.repository)
        return reference


def _reference(text: str) -> Reference | None:
    """Parse the reference that a signature names; None if it is not valid. No tag is implied."""
    try:
        found = parse_reference(text, foreign=True)
    except BadInput:
        return None
    if found.kind != "registry":
        return None
    return found if ":" in text.partition("@")[0].rpartition("/")[2] else found._replace(tag="")


def _named(said: Reference | None) -> str:
    """Return the whole of what a signature names; "" if it names nothing."""
    return "" if said is None else str(said)


def _other(signed: str, wanted: str) -> str:
    what = f"signed as {printable(signed, 120)}" if signed else "signed without a repository"
    return f"{what}, and not as {printable(wanted, 120)}"
