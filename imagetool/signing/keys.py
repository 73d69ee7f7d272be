"""Private keys that sign: a PEM file, plain or encrypted, cosign's, or a command that asks a KMS.

No key and no passphrase is ever part of a message, an argument or a file of ours.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from imagetool.signing import cosign
from rootdisk.cli.files import read_small_file
from rootdisk.errors import BadInput, RootdiskError, Unsupported
from rootdisk.system import process
from rootdisk.text import printable
from rootdisk.trust.keys import KEY_MAX_BYTES, PublicKey, missing_package

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PASSPHRASES = (*process.PRIVATE, "COSIGN_PASSWORD")
_COMMAND_S = 120.0


class KeyOptions(NamedTuple):
    """The key that signs, as a user names it."""

    key: str = ""  # a file, or env://NAME
    passphrase_file: Path | None = None
    command: str = ""
    public_key: Path | None = None  # of the command's key


class SigningKey(Protocol):
    """A key that signs."""

    public: PublicKey

    def sign(self, data: bytes) -> bytes:
        """Return a signature over `data`."""


def load_key(options: KeyOptions) -> SigningKey:
    """Open the key that `options` names.

    Raises:
        BadInput: It cannot be read, is of another kind, or its passphrase is wrong or missing.
    """
    if bool(options.key) == bool(options.command):
        if options.key:
            raise BadInput("--key and --key-command", "give one of them")
        raise BadInput("no key to sign with", "give --key FILE or --key-command COMMAND")
    if options.command:
        if options.public_key is None:
            raise BadInput("--key-command without --public-key", "name the file of its public key")
        public = PublicKey.parse(read_key_file(options.public_key), printable(options.public_key))
        return CommandKey(options.command, public)
    what = f"key {printable(options.key)}"
    if options.key.startswith("env://"):
        text = os.environ.get(options.key.removeprefix("env://"))
        if not text:
            raise BadInput(f"{what}: the variable is not set")
        pem = text.encode(errors="surrogateescape")
    else:
        pem = read_key_file(Path(options.key))
    return FileKey(pem, _passphrase(options.passphrase_file), what)


class FileKey:
    """A key in memory."""

    def __init__(self, pem: bytes, passphrase: bytes | None, what: str) -> None:
        try:
            from cryptography.exceptions import UnsupportedAlgorithm
            from cryptography.hazmat.primitives import serialization
            from cryptography.hazmat.primitives.asymmetric import ec, ed25519
        except ModuleNotFoundError as err:
            raise missing_package() from err
        if passphrase is None and b"ENCRYPTED" in pem:
            raise BadInput(f"{what}: it is encrypted", f"set {PASSPHRASES[0]} or --passphrase-file")
        try:
            if cosign.is_cosign(pem):
                key = serialization.load_der_private_key(cosign.decrypt(pem, passphrase or b"", what), None)
            else:
                key = serialization.load_pem_private_key(pem, passphrase if b"ENCRYPTED" in pem else None)
        except (ValueError, TypeError) as err:
            hint = f"is the passphrase right? ({PASSPHRASES[0]})" if b"ENCRYPTED" in pem else "it has to be PEM"
            raise BadInput(f"{what}: cannot be read", hint) from err
        except UnsupportedAlgorithm as err:
            raise Unsupported(f"{what}: of a kind that is not read", "ECDSA P-256 or Ed25519") from err
        if not isinstance(key, (ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)):
            raise Unsupported(f"{what}: of a kind that does not sign here", "ECDSA P-256 or Ed25519")
        self._key: EllipticCurvePrivateKey | Ed25519PrivateKey = key
        der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.public = PublicKey.of_der(der, what)

    def sign(self, data: bytes) -> bytes:
        """Return a signature over `data`."""
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519
        from cryptography.hazmat.primitives.hashes import SHA256

        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(data)
        return self._key.sign(data, ec.ECDSA(SHA256()))


class CommandKey:
    """A key that only a command can use: it reads the data from standard input and writes the signature to standard output."""

    def __init__(self, command: str, public: PublicKey) -> None:
        try:
            self._argv = shlex.split(command)
        except ValueError as err:
            raise BadInput(f"--key-command {printable(command, 80)}: {err}") from err
        if not self._argv:
            raise BadInput("--key-command is empty")
        self.public = public

    def sign(self, data: bytes) -> bytes:
        """Return a signature over `data` that the public key has been shown to match."""
        what = f"--key-command {printable(self._argv[0], 80)}"
        try:
            done = process.run(self._argv, stdin=data, timeout_s=_COMMAND_S, max_bytes=KEY_MAX_BYTES)
        except OSError as err:
            raise RootdiskError(f"{what}: {err.strerror}") from err
        if done.status:
            why = printable(done.complaint.strip())
            raise RootdiskError(f"{what}: failed with {done.status}" + (why and f": {why}"))
        if not self.public.verify(done.out, data):
            raise RootdiskError(
                f"{what}: what it wrote is not a signature of the public key",
                "ECDSA: in DER, over the sha256 of its input",
            )
        return done.out


def _passphrase(file: Path | None) -> bytes | None:
    """Read the passphrase: the first line of `file`, else a variable of the environment; None if there is none."""
    if file is not None:
        return read_key_file(file).split(b"\n", 1)[0].removesuffix(b"\r")
    for name in PASSPHRASES:
        if name in os.environ:
            return os.environb[name.encode()]
    return None


def read_key_file(path: Path) -> bytes:
    """Read a file with a key or passphrase; BadInput if it cannot be read or is too large for one."""
    return read_small_file(path, KEY_MAX_BYTES)
