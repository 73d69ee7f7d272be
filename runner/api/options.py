"""Options of a boot as keyword arguments: the same as of the command, checked by the same parser."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypedDict

from rootdisk.cli.arguments import did_you_mean, subparsers
from rootdisk.errors import BadInput
from rootdisk.text import printable
from runner.api.texts import kind_of, path_of, shown, text_of
from runner.parser import parser

# Of the command only: what a program has in another way, or not at all.
NOT_OFFERED = frozenset({"artifact", "program", "help", "json", "debug", "quiet", "interactive", "tty", "events"})


class BootOptions(TypedDict, total=False):
    """Options of `boot`; `runner boot --help` describes them. Sizes are text such as "512m", or a number of bytes."""

    name: str
    from_snapshot: str  # in place of an artifact
    detach: bool  # the sandbox goes on when this program ends
    keep: bool
    rm: bool
    timeout: float
    restart: str
    memory: str | int
    cpus: int
    disk_size: str | int
    network: str
    allow: Sequence[str]
    allow_file: Sequence[str | os.PathLike[str]]
    secret: Sequence[str]
    widen: bool
    publish: Sequence[str]
    volume: Sequence[str]
    env: Mapping[str, str] | Sequence[str]
    env_file: Sequence[str | os.PathLike[str]]
    label: Mapping[str, str] | Sequence[str]
    workdir: str
    user: str
    entrypoint: str
    hostname: str
    read_only: bool
    tmpfs: Sequence[str]
    shm_size: str | int
    ulimit: Sequence[str]
    add_host: Sequence[str]
    dns: Sequence[str]
    dns_search: Sequence[str]
    dns_option: Sequence[str]
    pid1: bool
    init: bool
    tls_cert: str | os.PathLike[str]
    tls_key: str | os.PathLike[str]
    tls_ca: str | os.PathLike[str]
    pull: str
    record_reads: str | os.PathLike[str]
    platform: str
    policy: str | os.PathLike[str]
    verify: bool
    plain_http: bool
    ca_file: str | os.PathLike[str]
    backend: str
    accel: str
    clone: str
    cold: bool


def boot_options(artifact: str, command: Sequence[str], options: Mapping[str, Any]) -> argparse.Namespace:
    """Return what the parser of `runner boot` returns for the same options.

    Raises:
        BadInput: An option is unknown or has a wrong value.
    """
    return _options("boot", artifact, {**options, "program": words(command)})


def pull_options(artifact: str, options: Mapping[str, Any]) -> argparse.Namespace:
    """Return what the parser of `runner pull` returns for the same options; errors as of `boot_options`."""
    return _options("pull", artifact, options)


def exec_options(
    command: Sequence[str], env: Mapping[str, str] | Sequence[str], workdir: str, user: str
) -> argparse.Namespace:
    """Return what the parser of `runner exec` returns for the same options."""
    return argparse.Namespace(
        program=words(command),
        env=_texts(env, "env"),
        env_file=[],
        workdir=text_of(workdir, "workdir"),
        user=text_of(user, "user"),
        tty=False,
    )


def words(command: Sequence[str]) -> list[str]:
    """Return a command's words; BadInput if it is one text, which no shell would split, or not a list."""
    if isinstance(command, str | bytes):
        raise BadInput(f"command {printable(command, 80)!r} is one text", 'write a list: ["sh", "-c", "…"]')
    if not isinstance(command, Iterable) or isinstance(command, Mapping | Set):
        raise BadInput(f"command is {kind_of(command)}, not a list", 'write a list: ["sh", "-c", "…"]')
    return [text_of(word, "command") for word in command]


def _options(command: str, artifact: str, options: Mapping[str, Any]) -> argparse.Namespace:
    top = parser(command)
    namespace: argparse.Namespace = top.parse_args([command, "--quiet", "-"])
    # Not parsed: it may look like an option.
    namespace.artifact = text_of(artifact, "artifact")
    actions = {action.dest: action for action in subparsers(top)[command]._actions}
    for name, value in options.items():
        if name not in actions or (name in NOT_OFFERED and name != "program"):
            near = did_you_mean(name, sorted(actions.keys() - NOT_OFFERED), "see docs/reference/python.md")
            raise BadInput(f"{printable(name, 60)} is not an option of {command}", near)
        if value is not None:
            setattr(namespace, name, _value(name, actions[name], value))
    return namespace


def _value(name: str, action: argparse.Action, value: Any) -> Any:
    """Convert a value to what the parser makes of the option's text."""
    if name == "program":
        return value
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise BadInput(f"{name}={shown(value)}", "True or False")
        return value
    if isinstance(action.default, list):
        texts = _texts(value, name)
        return [Path(path_of(text, name)) for text in texts] if action.type is not None else texts
    if action.choices is not None and value not in action.choices:
        raise BadInput(f"{name}={shown(value)}", f"write one of {', '.join(map(str, action.choices))}")
    if isinstance(value, str | os.PathLike):
        value = text_of(value, name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadInput(f"{name}={shown(value)}", f"as {action.option_strings[-1]} {action.metavar} of runner boot")
    if action.type is None:
        return _plain(value, name)
    try:
        return action.type(_plain(value, name))  # type: ignore[operator]
    except argparse.ArgumentTypeError as err:
        raise BadInput(f"{name}: {err}") from None


def _texts(value: Any, what: str) -> list[str]:
    """Return the texts of a list, or NAME=VALUE for each entry of a mapping."""
    if isinstance(value, Mapping):
        return [f"{_name(key, what)}={_plain(item, what)}" for key, item in value.items()]
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise BadInput(f"{what} is {kind_of(value)}, not a list", "write a list, or for names with values a dict")
    return [text_of(text, what) for text in value]


def _name(key: Any, what: str) -> str:
    name = text_of(key, what)
    if not name or "=" in name:
        raise BadInput(f"{what}: {printable(name, 60)!r} is not a name", "it may have anything but =, and is not empty")
    return name


def _plain(value: Any, what: str) -> str:
    """Return a text, or that of a number. It may be secret."""
    if isinstance(value, int | float):
        try:
            return str(value)
        except ValueError:
            raise BadInput(f"{what} has a number of thousands of digits") from None
    return text_of(value, what)
