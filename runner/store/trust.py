"""Check the policy before an artifact is fetched or used, and keep the result in the store.

    ROOT/trust/HEX.json     accepted signatures of the manifest HEX, and the rules that have accepted them

A rule is what the policy requires for a reference, with the keys. If it changes, it is checked again: first with the kept
signatures, then with those of the registry. An artifact that the policy has not accepted is not used, even if it is in the
store. A file of another version is left alone, and its artifact is checked at each use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rootdisk.artifact.policies import rule_for
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import Reference
from rootdisk.oci.repository import RegistryOptions, Repository, resolve_chain
from rootdisk.places import open_mirrored
from rootdisk.system.versions import read_versioned, write_versioned
from runner.store.names import placed
from runner.store.store import Store

if TYPE_CHECKING:
    from rootdisk.trust.judgement import Found, Rule, Signer
    from rootdisk.trust.signatures import Signature

VERSION = 1
_VERDICTS_MAX = 32  # of one artifact: rules that have accepted it, the newest


class Gate:
    """The check of a reference before its use. `rule` is None if no policy applies."""

    def __init__(self, reference: Reference, rule: Rule | None) -> None:
        self.reference = reference
        self.rule = rule

    @classmethod
    def of(cls, reference: Reference, policy: Path | None) -> Gate:
        """Read the policy: the file `policy`, else that of this host."""
        return cls(reference, rule_for(reference, policy))

    def admits(self, store: Store, manifest: Digest) -> bool:
        """Return whether an artifact may be used according to the store's records. If not, the registry must be asked.

        Raises:
            Refused: The policy refuses it whatever its signatures are.
        """
        if self.rule is None:
            return True
        self.rule.refuse_outright()
        record = _Record.read(store, manifest)
        if self.rule.fingerprint in record.verdicts:
            return True
        if not record.signatures:
            return False
        from rootdisk.trust.judgement import Refused

        try:
            signers, used = self.rule.judge(record.signatures, record.trusted)
        except Refused:
            return False
        record.keep(store, manifest, self.rule, signers, used)
        return True

    def check(self, store: Store, repository: Repository, digests: Sequence[Digest]) -> None:
        """Ask for signatures of `digests`, the manifest last and before it the indexes that led to it.

        Raises:
            Refused: The policy refuses it.
            RootdiskError: Signatures cannot be fetched or checked.
        """
        if self.rule is None:
            return
        self.rule.refuse_outright()
        record = _Record.read(store, digests[-1])
        if self.rule.fingerprint in record.verdicts:
            return
        trusted = tuple(dict.fromkeys((*digests, *record.trusted)))
        signatures = _signatures(repository, tuple(reversed(digests)))
        signers, used = self.rule.judge(signatures, trusted)
        record.trusted = trusted
        record.keep(store, digests[-1], self.rule, signers, used)

    def check_stored(
        self, store: Store, manifest: Digest, platform: Platform, options: RegistryOptions, *, fetch: bool = True
    ) -> None:
        """Check an artifact of the store, with signatures of the place that it came from if `fetch` allows that.

        Raises:
            Refused: The policy refuses it.
            RootdiskError: Signatures cannot be fetched or checked.
        """
        if self.admits(store, manifest):
            return
        if not fetch:
            raise self.not_kept(manifest)
        with contextlib.closing(open_mirrored(self.reference, options)) as repository:
            chain = [descriptor.digest for descriptor, _ in resolve_chain(repository, self.reference, platform)]
            # The tag may have moved on: then signatures of what is in the store count, and no others.
            self.check(store, repository, chain if chain[-1] == manifest else [manifest])

    def not_kept(self, manifest: Digest) -> RootdiskError:
        """Return the error for an artifact whose signatures the store does not have."""
        where = self.rule.where if self.rule is not None else ""
        return RootdiskError(
            f"{self.reference}: the store has no signature of {manifest.short} as {where} asks",
            f"runner pull {self.reference.place}@{manifest}",
        )


def refuse_unless_kept(store: Store, reference: Reference, manifest: Digest) -> None:
    """Check what a kept sandbox was made of against the policy of this host, by what the store knows.

    Raises:
        RootdiskError: The policy refuses it, or has to be asked with signatures of the registry.
    """
    gate = Gate.of(placed(store, reference, manifest), None)
    if not gate.admits(store, manifest):
        raise gate.not_kept(manifest)


def _signatures(repository: Repository, digests: Sequence[Digest]) -> Iterator[Found]:
    from rootdisk.artifact.signatures import signatures_of

    for digest in digests:
        yield from signatures_of(repository, digest)


class _Record:
    """The file of a manifest."""

    def __init__(self) -> None:
        self.trusted: tuple[Digest, ...] = ()
        self.signatures: list[Signature] = []
        self.verdicts: dict[str, Any] = {}

    @classmethod
    def read(cls, store: Store, manifest: Digest) -> _Record:
        """Read the file. Return an empty record if it is missing, damaged or of another version."""
        from rootdisk.trust.signatures import Signature

        record = cls()
        try:
            value = read_versioned(_path(store, manifest), VERSION)
            trusted = tuple(Digest.parse(text) for text in value["trusted"])
            signatures = [Signature.of_json(item) for item in value["signatures"]]
            verdicts = {str(key): {"signers": list(item["signers"])} for key, item in value["verdicts"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RootdiskError):
            return record
        record.trusted, record.signatures, record.verdicts = trusted, signatures, verdicts
        return record

    def keep(
        self, store: Store, manifest: Digest, rule: Rule, signers: Sequence[Signer], used: Sequence[Signature]
    ) -> None:
        """Write down that `rule` has accepted the artifact."""
        self.signatures = list(dict.fromkeys((*used, *self.signatures)))[:_VERDICTS_MAX]
        verdicts = {rule.fingerprint: {"signers": [signer._asdict() for signer in signers]}, **self.verdicts}
        self.verdicts = dict(list(verdicts.items())[:_VERDICTS_MAX])
        path = _path(store, manifest)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        value = {
            "trusted": [str(digest) for digest in self.trusted],
            "signatures": [signature.to_json() for signature in self.signatures],
            "verdicts": self.verdicts,
        }
        write_versioned(path, value, VERSION, 0o600, durable=False)


def _path(store: Store, manifest: Digest) -> Path:
    return store.root / "trust" / f"{manifest.hex}.json"
