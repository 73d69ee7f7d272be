"""The decision: whether signatures meet what a policy requires.

A signature counts if a key of the policy made it, it is about the digest that was fetched or about the index that lists it, and
the reference in it is one that the policy takes. One that is malformed, another's, or about something else does not count
and does no harm; why it did not count is said if nothing else does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from rootdisk.errors import BadInput, RootdiskError
from rootdisk.oci.documents import Digest, canonical_json
from rootdisk.oci.reference import Reference
from rootdisk.text import printable
from rootdisk.trust.identity import Identity
from rootdisk.trust.keys import PublicKey
from rootdisk.trust.policy import Policy, ReadKey, Requirement
from rootdisk.trust.signatures import Signature

_REASONS_MAX = 3


class Refused(RootdiskError):
    """The policy refuses the artifact."""


class Signer(NamedTuple):
    """Key and identity of an accepted signature."""

    key: str  # fingerprint
    identity: str
    digest: str  # of the manifest or index that is signed
    format: str


class Condition(NamedTuple):
    """A requirement with its keys read."""

    type: str
    keys: tuple[PublicKey, ...]
    identity: Identity


class Rule(NamedTuple):
    """Conditions that a policy sets for one reference."""

    where: str  # file and scope
    reference: Reference
    conditions: tuple[Condition, ...]

    @classmethod
    def of(cls, policy: Policy, reference: Reference, read: ReadKey) -> Rule:
        """Return what `policy` asks of `reference`; `read` gives a key's file, and raises if it cannot be read."""
        scope, requirements = policy.requirements(reference)
        where = f"{policy.where} ({scope})"
        return cls(where, reference, tuple(_condition(requirement, read, where) for requirement in requirements))

    @property
    def fingerprint(self) -> str:
        """Digest of the rule: it differs after each change of the rule, of a key, or of the reference."""
        value = [
            [condition.type, [key.fingerprint for key in condition.keys], list(condition.identity)]
            for condition in self.conditions
        ]
        return hashlib.sha256(canonical_json([2, str(self.reference), value])).hexdigest()

    def refuse_outright(self) -> None:
        """Raise Refused if no signature could help."""
        for condition in self.conditions:
            if condition.type == "reject":
                raise Refused(f"{self.reference} is refused by {self.where}", "the policy says reject")
            if condition.type == "signedBy":
                raise Refused(
                    f"{self.reference} is refused by {self.where}: it asks for signedBy, a GPG signature",
                    "only sigstoreSigned is checked here",
                )

    def judge(self, signatures: Iterable[Found], trusted: Sequence[Digest]) -> tuple[list[Signer], list[Signature]]:
        """Return who signed, and the signatures that show it. No more is read than needed.

        `trusted` are the digest that was fetched and those of the indexes that led to it.

        Raises:
            Refused: The rule is not met.
        """
        self.refuse_outright()
        open_ = [condition for condition in self.conditions if condition.type == "sigstoreSigned"]
        signers: list[Signer] = []
        used: list[Signature] = []
        reasons: list[str] = []
        count = 0
        for found in signatures if open_ else ():
            count += 1
            if isinstance(found, Unusable):
                reasons.append(found.why)
                continue
            for condition in list(open_):
                signer, why = _checked(condition, found, trusted, self.reference)
                if signer is not None:
                    open_.remove(condition)
                    signers.append(signer)
                    used.append(found)
                else:
                    reasons.append(why)
            if not open_:
                break
        if open_:
            raise self._refused(count, reasons)
        return signers, list(dict.fromkeys(used))

    def _refused(self, count: int, reasons: Sequence[str]) -> Refused:
        what = f"{self.reference} is not signed as {self.where} asks"
        if not count:
            return Refused(f"{what}: it has no signature", "imagetool sign --key KEY signs it")
        different = list(dict.fromkeys(reasons))
        more = f"; and {len(different) - _REASONS_MAX} more" if len(different) > _REASONS_MAX else ""
        return Refused(f"{what}: {'; '.join(different[:_REASONS_MAX])}{more}")


class Unusable(NamedTuple):
    """Data that should be a signature but is not, and the reason."""

    why: str


Found = Signature | Unusable


def _checked(
    condition: Condition, signature: Signature, trusted: Sequence[Digest], reference: Reference
) -> tuple[Signer | None, str]:
    """Return who signed, if `signature` meets `condition`; else why not."""
    for key in condition.keys:
        try:
            claim = signature.claim(key)
        except BadInput as err:
            return None, f"a signature that is not valid: {err}"
        if claim is None:
            continue
        if claim.digest not in trusted:
            return None, f"a signature of another digest, {claim.digest.short}"
        why = condition.identity.refuses(reference, claim.identity)
        if why:
            return None, why
        return Signer(key.fingerprint, claim.identity, str(claim.digest), signature.format), ""
    return None, "a signature of another key, or of something changed since"


def _condition(requirement: Requirement, read: ReadKey, where: str) -> Condition:
    keys = [PublicKey.parse(data, f"{where}: keyData") for data in requirement.key_data]
    keys += [PublicKey.parse(read(path), f"{where}: {printable(path)}") for path in requirement.key_paths]
    return Condition(requirement.type, tuple(keys), requirement.identity)


def who_signed(signatures: Iterable[Found], keys: Sequence[PublicKey]) -> Iterator[dict[str, object]]:
    """Describe each signature for people: whose it is if one of `keys` made it, and what it says then."""
    for found in signatures:
        if isinstance(found, Unusable):
            yield {"format": "", "key": "", "verified": False, "why": found.why}
            continue
        value: dict[str, object] = {"format": found.format, "key": "", "verified": False}
        try:
            value["key"] = found.hint()
            for key in keys:
                if (claim := found.claim(key)) is not None:
                    value |= {"key": key.fingerprint, "verified": True}
                    value |= {"identity": claim.identity, "digest": str(claim.digest)}
                    break
        except BadInput as err:
            value["why"] = str(err)
        yield value
