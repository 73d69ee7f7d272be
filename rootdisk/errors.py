"""What can go wrong, in families by what the caller can do about it.

Every error holds one line that says what failed and which thing, and apart from it a hint: what to do. Library code
raises, the two `main` functions print `tool: message: hint` and exit; nobody else prints errors.
"""

from __future__ import annotations


class RootdiskError(Exception):
    """Something failed that is not the user's input; exit status 1."""

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


class BadInput(RootdiskError):
    """The user's input is wrong: a reference, a file, an option, a key; exit status 2."""

    exit_status = 2


class Unsupported(BadInput):
    """The input is well formed, and needs something we do not do; the message names the feature."""


class DigestMismatch(RootdiskError):
    """Bytes are not those the digest names. Never cached; fetching again may help."""


class RegistryError(RootdiskError):
    """A registry said no, or could not be reached.

    `temporary` says whether trying again may help; `status` is the HTTP status, 0 where there was no answer.
    """

    def __init__(self, message: str, hint: str = "", *, temporary: bool = False, status: int = 0) -> None:
        super().__init__(message, hint)
        self.temporary = temporary
        self.status = status


class Busy(RootdiskError):
    """Someone else holds a lock or uses the thing; the message names who."""
