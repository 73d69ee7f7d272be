"""Numbers of users, groups and signals, as images, options and guests write them.

One parser for each, for all of imagetool and runner, so that no number is cut to fit: 4294967296 is an error and never
root. The guest's init has the same rules in C.
"""

from __future__ import annotations

from rootdisk.errors import BadInput
from rootdisk.text import printable

ID_MAX = 0xFFFF_FFFE  # (uid_t)-1 means "leave it" to chown(2)
RANGE = "0 to 4294967294"
SIGNAL_MAX = 64  # _NSIG of Linux on all our architectures
_RTMIN = 34  # what glibc and musl leave to programs
_DIGITS = frozenset("0123456789")  # str.isdigit() takes those of every script


def is_id(number: int) -> bool:
    """Return whether `number` can be a user or group number."""
    return 0 <= number <= ID_MAX


def is_number(text: str) -> bool:
    """Return whether `text` is written as a number: ASCII digits, perhaps with a sign."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    return bool(digits) and _DIGITS.issuperset(digits)


def parse_id(text: str) -> int:
    """Return the user or group number that `text` writes in decimal digits.

    Raises:
        BadInput: It is not a number, or not one of 0 to 4294967294.
    """
    digits = text.lstrip("0")[: len(str(ID_MAX)) + 1]  # of thousands of digits, few are enough to tell
    if not text or not _DIGITS.issuperset(text) or not is_id(int(digits or "0")):
        raise BadInput(f"{printable(text, 40)!r} is not a user or group number", RANGE)
    return int(digits or "0")


def id_or_none(text: str) -> int | None:
    """Return the user or group number that `text` writes, or None if it is not one."""
    try:
        return parse_id(text)
    except BadInput:
        return None


def check_user(user: str, what: str) -> str:
    """Return `user`, USER[:GROUP] by name or number, as an image's config and `-u` have it.

    Names are looked up in the guest; only there it is known if they exist.

    Raises:
        BadInput: One of its numbers is out of range. The message begins with `what`.
    """
    for part in user.split(":"):
        if is_number(part):
            try:
                parse_id(part)
            except BadInput as err:
                raise BadInput(f"{what} {printable(user, 80)!r}: {err.message}", err.hint) from None
    return user


def parse_signal(text: str) -> int:
    """Return the number of a signal: `TERM`, `SIGTERM`, `15`, `SIGRTMIN+3`, `RTMAX-1`. Case does not matter.

    Raises:
        BadInput: `text` is not a signal.
    """
    import signal  # loaded when it is needed: most commands name no signal

    name = text.upper().removeprefix("SIG")
    if len(name) <= 2 and _DIGITS.issuperset(name) and name and 0 < int(name) <= SIGNAL_MAX:
        return int(name)
    for base, sign, number in (("RTMIN", "+", _RTMIN), ("RTMAX", "-", SIGNAL_MAX)):
        offset = name.removeprefix(base + sign)
        if name == base:
            return number
        if offset != name and 0 < len(offset) <= 2 and _DIGITS.issuperset(offset):
            signal_number = number + int(offset) if sign == "+" else number - int(offset)
            if _RTMIN <= signal_number <= SIGNAL_MAX:
                return signal_number
    if name.startswith("RT") or f"SIG{name}" not in signal.Signals.__members__:
        raise BadInput(
            f"{printable(text, 40)!r} is not a signal", "write TERM, SIGUSR1, SIGRTMIN+3 or a number from 1 to 64"
        )
    return int(signal.Signals[f"SIG{name}"])
