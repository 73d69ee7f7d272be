"""The generated pages of docs/reference: `python -m tests.support.reference` writes them, a test compares them.

commands.md comes from the parsers, python.md from docstrings, images-toml.md from the JSON Schema, vectors.json from the code that writes the formats.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import runner
from imagetool import parser as imagetool_parser
from imagetool.build import derivation
from imagetool.config import schema
from rootdisk.artifact import zstd_frames
from rootdisk.artifact.format import Chunk, ChunkIndex, key_tag
from rootdisk.cli.arguments import subparsers
from rootdisk.cli.manual import manual
from rootdisk.oci.documents import canonical_json
from runner import cli as runner_cli
from runner.api.options import BootOptions
from runner.disk import slot
from runner.words import docker, podman
from tests.support.commands import ROOT

PLACE = ROOT / "docs/reference"
# Methods that the sandboxes of both kinds share, and that no user calls.
INTERNAL = frozenset({"connect", "find", "settle", "drop", "begin", "log", "push", "reached"})
HEAD = "<!-- Generated: python -m tests.support.reference -->\n"


def commands() -> str:
    """Each command with its arguments and options."""
    parts = [
        HEAD,
        "# Commands\n",
        "Exit statuses, and the tasks of `doit`, are in [CI](../ci/README.md) and the [tutorial](../tutorial.md).\n",
        (
            f"An option may be given more than once. All values of {_lists()} count. "
            "Of each other option the last value counts, as in docker.\n"
        ),
    ]
    for name, top in (("imagetool", imagetool_parser.parser()), ("runner", runner_cli.parser())):
        parts.append(f"## {name}\n\n{top.description}\n")
        (choices,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
        words = {choice.dest: choice.help for choice in choices._choices_actions}
        for command, parser in choices.choices.items():
            if command in words:
                parts.append(_command(f"{name} {command}", parser, words[command] or ""))
    return "\n".join(parts)


def _lists() -> str:
    """The options that take a list, one value each time."""
    names = {
        action.option_strings[-1]
        for top in (imagetool_parser.parser(), runner_cli.parser())
        for parser in subparsers(top).values()
        for action in parser._actions
        if isinstance(action, argparse._AppendAction)
    }
    words = [f"`{name}`" for name in sorted(names)]
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _command(name: str, parser: argparse.ArgumentParser, words: str) -> str:
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    places = [_argument(action) for action in actions if not action.option_strings]
    usage = " ".join((name, "[OPTIONS]", *places))
    lines = [f"### {name}\n", f"{words[:1].upper()}{words[1:]}.\n", f"```text\n{usage}\n```\n"]
    rows = [
        (_names(action), action.help or "")
        for action in sorted(actions, key=lambda a: bool(a.option_strings))
        if action.option_strings or action.help
    ]
    if rows:
        lines += ["| | |\n|---|---|", *(f"| {names} | {_cell(text)} |" for names, text in rows), ""]
    if parser.epilog:
        example = parser.epilog.strip().removeprefix("examples:").removeprefix("Example:")
        lines.append("```text\n" + "\n".join(line.strip() for line in example.strip().splitlines()) + "\n```\n")
    return "\n".join(lines)


def _argument(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    return {"?": f"[{name}]", "*": f"[{name}…]", "+": f"{name}…", argparse.REMAINDER: f"{name}…"}.get(
        str(action.nargs), name
    )


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest.upper()}`"
    value = (
        ""
        if action.nargs == 0
        else f" {action.metavar or '|'.join(map(str, action.choices or ())) or action.dest.upper()}"
    )
    return f"`{', '.join(action.option_strings)}{_cell(value)}`"


def _cell(text: str) -> str:
    return text.replace("%(default)s", "").replace("%%", "%").replace("|", "\\|")


STATUSES = {
    "runner": {
        "0 to 255": "the program's own, of boot, start -a and exec",
        "124": "--timeout has passed",
        "125": "the runner failed",
        "126, 127": "the program could not be run, or was not found",
        "128 + n": "the program was ended by signal n; 130 after Ctrl-C",
    },
    "imagetool": {
        "0": "done",
        "1": "failed, or of diff, verify and signatures: there are differences",
        "2": "wrong input",
        "130": "interrupted",
    },
}


def manuals() -> dict[str, str]:
    """The manual pages, which are in the wheel."""
    tools = {"runner": runner_cli.parser(), "imagetool": imagetool_parser.parser()}
    return {
        f"../man/{name}.1": manual(parser, statuses=STATUSES[name], also=tuple({*tools} - {name}))
        for name, parser in tools.items()
    }


def docker_page() -> str:
    """The how-to page for people who know docker: each of its commands and options, and ours."""
    commands, options = docker.COMMANDS, docker.OPTIONS
    options = {**options, "before every command": docker.GLOBAL}
    pairs = docker.PAIRS
    words = [*commands.values(), *pairs.values(), *(word for some in options.values() for word in some.values())]
    same = sum(word == docker.SAME for word in words)
    none = sum(word.startswith(docker.NOT) for word in words)
    lines = [
        HEAD,
        "# From docker to the runner\n",
        "`runner` takes docker's commands and options as far as they make sense for virtual machines: `docker run -d -p 8080:80 IMG`",
        "is `runner run -d -p 8080:80 ARTIFACT`. If you type a word of docker that has another name here, the error says ours;",
        "so it does for words that only podman has.\n",
        f"Of docker's {len(words)} commands and options below, {same} are the same, {len(words) - same - none} have another name,",
        f"and {none} are not there. Ports are published on 127.0.0.1 by default, and a sandbox in the foreground is removed",
        "when it exits, as with `docker run --rm`; `--keep` keeps it.\n",
        "## Commands\n",
        "| docker | here |\n|---|---|",
        *(f"| `{name}` | {_here(word, f'runner {name}')} |" for name, word in commands.items()),
        *(f"| `{name}` | {_here(word, name)} |" for name, word in pairs.items()),
        "",
    ]
    lines += _options("docker", options)
    lines += ["## Commands of podman alone\n", "| podman | here |\n|---|---|"]
    lines += [f"| `{name}` | {_here(word, name)} |" for name, word in podman.PODMAN_COMMANDS.items()]
    lines += ["", *_options("podman", podman.PODMAN_OPTIONS)]
    return "\n".join(lines)


def _options(whose: str, options: dict[str, dict[str, str]]) -> list[str]:
    lines = []
    for command, some in options.items():
        if some:
            lines += [f"## Options of {whose} {command}\n", f"| {whose} | here |\n|---|---|"]
            lines += [f"| `{name}` | {_here(word, name)} |" for name, word in some.items()]
            lines.append("")
    return lines


def _here(word: str, name: str) -> str:
    if word == docker.SAME:
        return f"same: `{name}`"
    return _cell(word)


def images_toml() -> str:
    """The keys of images.toml."""
    described = json.loads(schema.PATH.read_text("utf-8"))
    lines = [
        HEAD,
        "# images.toml\n",
        f"`[image.NAME]` describes an image. `[defaults]`: {described['properties']['defaults']['description']}\n",
        "Editors know the keys by the schema: `imagetool schema` writes it.\n",
        "| key | type | meaning | default |\n|---|---|---|---|",
        *_keys(described, described["definitions"]["image"], ""),
        "",
    ]
    return "\n".join(lines)


def _keys(described: dict[str, Any], value: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, entry in value["properties"].items():
        entry = _resolved(described, entry)
        default = json.dumps(entry["default"]) if "default" in entry else ""
        code = f"`{default}`" if default else ""
        yield f"| `{prefix}{name}` | {_type(described, entry)} | {_cell(entry.get('description', ''))} | {code} |"
        inner = _resolved(described, entry.get("items", entry)) if entry.get("type") == "array" else entry
        if "properties" in inner:
            yield from _keys(described, inner, f"{prefix}{name}{'[].' if inner is not entry else '.'}")


def _resolved(described: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in entry:
        return entry
    found: Any = described
    for part in entry["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return {**found, **{key: value for key, value in entry.items() if key != "$ref"}}


def _type(described: dict[str, Any], entry: dict[str, Any]) -> str:
    for several in ("oneOf", "anyOf"):
        if several in entry and "type" not in entry:
            return " or ".join(_type(described, _resolved(described, one)) for one in entry[several])
    if "enum" in entry:
        return ", ".join(f"`{json.dumps(one)}`" for one in entry["enum"])
    kind = entry.get("type", "")
    if kind == "array":
        return f"list of {_type(described, _resolved(described, entry.get('items', {})))}"
    return "table" if kind == "object" else str(kind)


def python() -> str:
    """The Python API: each name that `runner` has, from its docstring and signature."""
    parts = [
        HEAD,
        "# Python\n",
        "```python\nfrom runner import Sandbox\n```\n",
        "The names below are in the package `runner`. [Run untrusted Python](../howto/agents.md) shows how to use them. Each error has",
        "a message and a remedy: `error.message`, `error.hint`.\n",
    ]
    for name in sorted(runner.__all__, key=lambda name: (_rank(getattr(runner, name)), name.lower())):
        parts += _described(name, getattr(runner, name))
    parts += [
        "## Options of boot\n",
        "The same as of the command, which checks them.\n",
        "| name | type | |\n|---|---|---|",
    ]
    actions = {action.dest: action for action in subparsers(runner_cli.parser("boot"))["boot"]._actions}
    for name, kind in BootOptions.__annotations__.items():
        kind = str(kind.__forward_arg__).replace("|", "\\|")
        parts.append(f"| `{name}` | `{kind}` | {_cell(actions[name].help or '')} |")
    return "\n".join(parts) + "\n"


def _rank(value: Any) -> int:
    """Sandboxes first, then functions, values and errors."""
    order = ("Sandbox", "Process", "AsyncSandbox", "AsyncProcess")
    if value.__name__ in order:
        return order.index(value.__name__)
    return 10 if inspect.isfunction(value) else 12 if issubclass(value, Exception) else 11


def _described(name: str, value: Any) -> Iterator[str]:
    if inspect.isfunction(value):
        yield f"## {name}\n\n```text\n{name}{_signature(value)}\n```\n\n{_prose(value)}\n"
        return
    bases = "" if not issubclass(value, Exception) else f", a {value.__bases__[0].__name__}"
    fields = getattr(value, "_fields", ())
    shown = f"\nFields: {', '.join(f'`{field}`' for field in fields)}.\n" if fields else ""
    yield f"## {name}{bases}\n\n{_prose(value)}\n{shown}"
    members: dict[str, Any] = {}
    for base in filter(_is_ours, value.__mro__):
        members = {**members, **{name: member for name, member in vars(base).items() if name not in members}}
    for attribute, member in members.items():
        if attribute.startswith("_") or attribute in fields or issubclass(value, Exception):
            continue
        function = getattr(member, "__func__", member.fget if isinstance(member, property) else member)
        if not inspect.isfunction(function) or attribute in INTERNAL:
            continue
        sign = "" if isinstance(member, property) else _signature(function)
        prefix = "await " if inspect.iscoroutinefunction(function) else ""
        yield f"### {name}.{attribute}\n\n```text\n{prefix}{attribute}{sign}\n```\n\n{_prose(function)}\n"


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("runner.")


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    text = str(signature.replace(parameters=parameters))
    return re.sub(r"'([^']*)'", r"\1", text).replace("Unpack[", "").replace("Options]", "Options")


def _prose(value: Any) -> str:
    """A docstring as Markdown: its lists of arguments and errors become lists."""
    lines = []
    for line in (inspect.getdoc(value) or "").splitlines():
        if match := re.fullmatch(r"    (\w+): (.*)", line):
            lines.append(f"- `{match[1]}`: {match[2]}")
        elif line in ("Args:", "Raises:"):
            lines += [f"{line[:-1]}:" if line == "Args:" else "Errors:", ""]
        else:
            lines.append(line)
    return "\n".join(lines)


def vectors() -> dict[str, Any]:
    """Inputs and the bytes that they make, for whoever writes another implementation; bytes are hex."""
    raw = bytes(4096) + b"\x01" * 4096 + bytes(4096)
    data = zstd_frames.compressor().compress(raw[4096:8192])
    zero = zstd_frames.zero_frame(4096)
    index = ChunkIndex(
        12288,
        (
            Chunk(0, 4096, 0, len(zero), bytes(32), True),
            Chunk(4096, 4096, len(zero), len(data), hashlib.sha256(raw[4096:8192]).digest(), False),
            Chunk(8192, 4096, len(zero) + len(data), len(zero), bytes(32), True),
        ),
    )
    table = zstd_frames.seek_table([(chunk.blob_length, chunk.length) for chunk in index.chunks])
    records = [
        ("env", b"GREETING=two\nlines = \xc3\xbc"),
        ("cmd", b"sh"),
        ("cmd", b""),
        ("hostname", b"box"),
        ("tty", b"1"),
    ]
    filled = slot.pack(records, 65536)
    inputs = {"platform": "linux/amd64", "source": "sha256:" + "ab" * 32, "recipe": {"env": [["Ü", 'a"b']], "cpus": 1}}
    key = derivation.derivation_key(inputs)
    return {
        "chunk_index": {
            "chunks": [
                {**chunk._asdict(), "sha256": chunk.sha256.hex()} for chunk in index.chunks
            ],
            "disk_digest": str(index.disk_digest()),
            "disk_size": index.disk_size,
            "index": index.pack().hex(),
            "index_sha256": hashlib.sha256(index.pack()).hexdigest(),
        },
        "derivation_key": {
            "canonical_json": canonical_json(inputs).decode(),
            "inputs": inputs,
            "key": key,
            "tag": key_tag(key),
        },
        "frames": {
            "compressor": zstd_frames.versions(),
            "data": data.hex(),
            "seek_table": table.hex(),
            "zero_4096": zero.hex(),
            "zero_131073": zstd_frames.zero_frame(131073).hex(),
            "zstd_file": (zero + data + zero + table).hex(),
        },
        "slot": {
            "bytes_after_payload": "zero",
            "head": filled.data[: 16 + int.from_bytes(filled.data[8:12], "little")].hex(),
            "length": 65536,
            "records": [[name, value.hex()] for name, value in records],
            "rootdisk.slot": filled.digest,
        },
    }  # fmt: skip


def pages() -> dict[str, str]:
    """Every generated file by its name."""
    return {
        "commands.md": commands(),
        "../howto/docker.md": docker_page(),
        **manuals(),
        "images-toml.md": images_toml(),
        "python.md": python(),
        "vectors.json": json.dumps(vectors(), indent=1, sort_keys=True, ensure_ascii=False) + "\n",
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (PLACE / name).write_text(text, "utf-8")
