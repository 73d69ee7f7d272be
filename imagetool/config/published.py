"""Parse the values of images.toml that are published as they are: texts and variables. None may hold a private key.

Each function takes a value with its position, and returns it or raises BadInput.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Container, Iterator

from imagetool.config import values
from imagetool.config.toml_lines import Where
from imagetool.layout import secrets
from rootdisk.errors import BadInput
from rootdisk.limits import SMALL_FILE_MAX_BYTES
from rootdisk.parsing import env_file
from rootdisk.text import one_line, printable


def reason(where: Where) -> str:
    """Read the reason why a private key may be published."""
    text = where.string().strip()
    if not text:
        raise where.error("gives no reason", 'write why it is not a secret, for example "a key of the tests"')
    return text


@functools.cache  # defaults are read once for each image
def _remark(text: str) -> None:
    print(f"imagetool: {one_line(text)}", file=sys.stderr, flush=True)


def refuse_secret(
    where: Where, name: str, found: str, allowed: Container[str], what: str = "", unread: str = ""
) -> None:
    """BadInput if a private key was `found` in what is added as `name` and is not allowed there; `what` says which value.

    If none was found but not all was looked through, one remark says so: `unread` is the reason.
    """
    if name in allowed:
        return
    if unread and not found:
        _remark(f"{printable(name)}: not looked through to its end for private keys: {unread}")
    if found:
        give = f"-e {name}, or --tls-key FILE" if name.isidentifier() else "--tls-key FILE"
        raise where.error(
            f"{what}holds {found}, and a build is published",
            f"leave it out and give it to each sandbox: runner boot {give}; "
            f'if it is not a secret, write allow_secret = {{ "{printable(name)}" = "why" }}',
        )


def plain_text(where: Where, name: str, allowed: Container[str]) -> str:
    """Read a text that is published; BadInput if it holds a private key."""
    text = where.string()
    _refuse_secret_text(where, name, text, allowed)
    return text


def plain_texts(where: Where, name: str, allowed: Container[str]) -> tuple[str, ...]:
    """Read texts that are published, without private keys."""
    found = values.strings(where)
    for text in found:
        _refuse_secret_text(where, name, text, allowed)
    return found


def _refuse_secret_text(where: Where, name: str, text: str, allowed: Container[str], what: str = "") -> None:
    unread: list[str] = []
    found = secrets.in_bytes(text.encode(), unread=unread)
    refuse_secret(where, name, found, allowed, what, "".join(unread[:1]))


def variable(where: Where, allowed: Container[str] = ()) -> str:
    """Return NAME=value for a key of `env`."""
    name, value = where.key, where.value
    if isinstance(value, dict) and value.get("secret") is True:
        raise where.error(
            "is secret, and a build is published",
            f"leave it out and give it to each sandbox: runner boot -e {name}, or --env-file FILE",
        )
    return _variable(where, name, where.string(), allowed)


def variables(where: Where, allowed: Container[str] = ()) -> tuple[str, ...]:
    """Return NAME=value of every line in the files that a list names, as rootdisk/parsing/env_file.py reads them.

    A name alone is an error here: a build does not depend on the environment.
    """
    return tuple(_variables(where, allowed))


def _variables(where: Where, allowed: Container[str]) -> Iterator[str]:
    from imagetool.layout.own_files import leads_out

    for number, name in enumerate(values.strings(where, '["app.env"]')):
        if out := leads_out((where / number).path(), where.file.parent):
            raise where.error(f"{name} is a link to {printable(out)}, out of its directory", "name the file itself")
        text = values.small_file(where / number, SMALL_FILE_MAX_BYTES)
        try:
            lines = env_file.numbered(text, name)
        except BadInput as err:
            raise where.error(err.message, err.hint) from err
        for line_number, line in lines:
            key, equals, value = line.decode().partition("=")
            if not equals:
                raise where.error(f"{name}, line {line_number}: {key!r:.80} has no value", "write NAME=VALUE")
            yield _variable(where, key, value, allowed, f"{name}, line {line_number}: ")


def _variable(where: Where, name: str, text: str, allowed: Container[str], place: str = "") -> str:
    if not name or "=" in name or "\0" in name:
        raise where.error(f"{place}is not a valid name of a variable")
    if "\0" in text:
        raise where.error(f"{place}holds a NUL byte", "no program could be given it")
    _refuse_secret_text(where, name, text, allowed, place)
    return f"{name}={text}"
