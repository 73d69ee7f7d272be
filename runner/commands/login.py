"""The commands login and logout: save and remove credentials for a registry, in the file that docker uses."""

from __future__ import annotations

import argparse
import sys

from rootdisk.cli.rows import write_rows
from rootdisk.errors import BadInput
from rootdisk.text import printable


def login_command(options: argparse.Namespace) -> int:
    """Check a name and password with a registry, and save them."""
    from rootdisk.registry import login
    from rootdisk.registry.credentials import Credentials
    from runner.options.values import registry as registry_options

    registry = login.parse_registry(options.registry)
    username = options.username or _ask(f"Username for {registry}: ")
    if not username or not username.isprintable() or ":" in username:
        raise BadInput(f"--username {printable(username, 80)!r}", "a name without ':'")
    password = (
        _password_from_stdin(login.PASSWORD_MAX)
        if options.password_stdin
        else _ask_password(f"Password for {username}: ")
    )
    if not password:
        raise BadInput("the password is empty", "with --password-stdin it is read from standard input")
    credentials = Credentials(username, password)
    login.check(registry, credentials, registry_options(options))
    place = login.save(registry, credentials)
    if options.json:
        write_rows([{"registry": registry, "username": username, "saved": place}])
    else:
        print(f"logged in to {printable(registry)} as {printable(username)}; saved in {place}")
    return 0


def logout_command(options: argparse.Namespace) -> int:
    """Remove the credentials that login saved."""
    from rootdisk.registry import login

    registry = login.parse_registry(options.registry)
    place = login.remove(registry)
    if options.json:
        write_rows([{"registry": registry, "removed": place}] if place else [])
    else:
        shown = printable(registry)
        print(f"logged out of {shown}; removed from {place}" if place else f"not logged in to {shown}")
    return 0


def _ask(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise BadInput("no user name, and standard input is not a terminal", "give --username and --password-stdin")
    print(prompt, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def _password_from_stdin(limit: int) -> str:
    data = sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise BadInput("the password on standard input is too long", "is it the right file?")
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise BadInput("the password on standard input is not text", "is it the right file?") from None


def _ask_password(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise BadInput("no password, and standard input is not a terminal", "give --password-stdin")
    import getpass

    return getpass.getpass(prompt, sys.stderr)
