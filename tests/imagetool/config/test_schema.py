"""images.schema.json and the parser say the same of every key, and of every sample the parser's own tests have."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from imagetool.config import images, schema
from imagetool.config.values import _TEMPLATES
from rootdisk.errors import BadInput
from tests.support.commands import ROOT
from tests.support.descriptions import WRONG
from tests.support.schemas import check, complaint

SCHEMA = json.loads(schema.PATH.read_bytes())
# What only reading files, or arithmetic, or another key's value tells.
BEYOND: tuple[str, ...] = (
    "whole MiB",
    "32MiB",
    "leave it out",
    "oci:DIR",
    "not Linux",
    "runner boot",
    "private key",
    "No such file",
)
BEYOND += (
    "names nothing",
    "rootdisk's own place",
    "is not a file",
    "no source",
    "cmd",
    "1MiB or more",
    "one twice",
    "same path",
)


def samples() -> list[tuple[str, str]]:
    """What is wrong in an image's table, and what the error says."""
    return [(body, words) for body, _, words in WRONG]


def test_it_is_a_schema() -> None:
    check(SCHEMA)


def test_the_project_s_own_file() -> None:
    assert complaint(tomllib.loads((ROOT / "images.toml").read_text()), SCHEMA) == ""


@pytest.mark.parametrize(("body", "words"), [s for s in samples() if not any(word in s[1] for word in BEYOND)])
def test_it_refuses_what_the_parser_refuses(body: str, words: str) -> None:
    assert complaint(tomllib.loads(f'[image.a]\nsource = "example.org/a:1"\n{body}\n'), SCHEMA)


def of_type(value: dict[str, Any]) -> Any:
    """A value that the schema allows, and another that no key has."""
    return {"string": 1, "integer": "x", "boolean": "x", "array": 1, "object": 1}[value.get("type", "string")]


@pytest.mark.parametrize("key", schema.keys("image"))
def test_the_parser_reads_every_key(key: str, tmp_path: Path) -> None:
    """A value of the wrong type is an error that names the key, so no key is only allowed and then left alone."""
    wrong = json.dumps({key: of_type(SCHEMA["definitions"]["image"]["properties"][key])})
    name, value = wrong[1:-1].split(": ", 1)
    rest = "" if key == "source" else 'source = "x.y/a:1"\n'
    with pytest.raises(BadInput, match=rf"image\.a\.{key}"):
        images.parse(f"[image.a]\n{rest}{name} = {value}\n", tmp_path / "images.toml")


@pytest.mark.parametrize("kind", ["tls", "file", "owner", "process", "network"])
def test_the_parser_reads_every_key_of_a_table(kind: str, tmp_path: Path) -> None:
    for key in schema.keys(kind):
        prefix = {"file": "[[image.a.files]]", "owner": '[image.a.owners."/a"]'}.get(kind, f"[image.a.{kind}]")
        needed = {"file": {"path": '"/a"', "text": '""'}, "owner": {"user": '"x"'}}.get(kind, {})
        table = {**needed, key: "1.5"}
        if key == "from":
            del table["text"]
        body = "".join(f"{name} = {value}\n" for name, value in table.items())
        with pytest.raises(BadInput, match=rf"\.{key}: "):
            images.parse(f'[image.a]\nsource = "x.y/a:1"\n{prefix}\n{body}', tmp_path / "images.toml")


def test_defaults_and_templates_are_those_of_the_parser() -> None:
    (image,) = images.parse('[image.a]\nsource = "x.y/a:1"\n', Path("/p/images.toml"))
    text = "[image.a]\nsource = 'x.y/a:1'\n"
    for key, value in SCHEMA["definitions"]["image"]["properties"].items():
        if "default" in value:
            text += f"{key} = {json.dumps(value['default'])}\n"
    assert images.parse(text, Path("/p/images.toml")) == (image,)
    described = SCHEMA["definitions"]["image"]["properties"]["version"]["description"]
    assert all(f"{{{name}}}" in described for name in _TEMPLATES)
