"""Error classes, grouped by what the caller can do.

Each error has a message of one line, which says what failed and with which thing, and a separate hint, which says what to
do. Library code raises. Only the two `main` functions print errors, as `tool: message: hint`, and exit.
"""

from __future__ import annotations


class RootdiskError(Exception):
    """A failure that is not caused by the user's input; exit status 1."""

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


class BadInput(RootdiskError):
    """Invalid input from the user: a reference, a file, an option or a key; exit status 2."""

    exit_status = 2


class NotThere(BadInput):
    """A layout has no such tag or manifest; a registry says so by RegistryError and status 404."""


class Unsupported(BadInput):
    """Valid input that needs a feature which is not implemented; the message names the feature."""


class DigestMismatch(RootdiskError):
    """Content that does not match its digest. It is never cached; fetching it again may help."""


class RegistryError(RootdiskError):
    """A registry refused a request or could not be reached.

    `temporary` tells whether trying again may help. `status` is the HTTP status, or 0 if there was no response.
    """

    def __init__(self, message: str, hint: str = "", *, temporary: bool = False, status: int = 0) -> None:
        super().__init__(message, hint)
        self.temporary = temporary
        self.status = status


class Busy(RootdiskError):
    """A lock that another process holds; the message names the process."""


class TimedOut(RootdiskError):
    """A program in a sandbox did not end in the time that its caller gave it, and was killed.

    `stdout` and `stderr` are what it had written until then.
    """

    def __init__(self, message: str, hint: str = "", *, stdout: bytes = b"", stderr: bytes = b"") -> None:
        super().__init__(message, hint)
        self.stdout = stdout
        self.stderr = stderr
